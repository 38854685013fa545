"""The planner: compiles the real train step of a run for devices that are not there, and reads what it needs.

`compile` makes the step, `memory` and `collectives` read what it needs, `bounds` says how fast it can be at best, and
`report` shows all of it as text and JSON. The devices are described in `system/topologies.py` and `system/chips.py`.
"""
