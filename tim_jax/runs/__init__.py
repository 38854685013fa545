"""All that sees a built run: its start, input pipeline, teachers, sampling, measurement, workdir and Python interface."""
