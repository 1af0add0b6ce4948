"""`python -m circuit_tracer.cli`: `circuit-tracer` where scripts are not on the path."""

from circuit_tracer.cli.main import main

if __name__ == "__main__":
    main(prog_name="python -m circuit_tracer.cli")
