"""All that sees a built run: start, input pipeline, teachers, sampling, measurement, workdir, the Python interface."""
