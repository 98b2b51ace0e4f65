"""`python -m lit_gpt_scratch.export`: the command `lit-gpt-scratch export`."""

from lit_gpt_scratch.cli.export_command import main

if __name__ == "__main__":
    main()
