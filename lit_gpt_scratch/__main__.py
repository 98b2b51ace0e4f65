from lit_gpt_scratch.cli import run

if __name__ == "__main__":
    run()
