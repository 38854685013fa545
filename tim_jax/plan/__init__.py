"""Plans a run for devices that are not there: compiles the real train step for them and reads what it needs.

topologies and chips: the devices. compile: the step. memory, flops, collectives: what it needs. bounds: how fast it
can be at best. report: all of it as text and JSON.
"""
