"""`python -m lit_gpt_scratch.report`: the command `lit-gpt-scratch report`."""

from lit_gpt_scratch.runs.report import main

if __name__ == "__main__":
    main()
