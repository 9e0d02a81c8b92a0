from hf_ci.cli import main

if __name__ == "__main__":
    main()
