"""`python -m lit_gpt_scratch.dashboard`: the command `lit-gpt-scratch dashboard`."""

from lit_gpt_scratch.runs.dashboard import main

if __name__ == "__main__":
    main()
