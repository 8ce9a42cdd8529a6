"""Discrete-event simulation of a plan: its engines step by step, its requests one by one.

It needs the plan alone, which embeds the instance, the hardware and the constants it was made
from. Step times are those of the performance model for the batch that is really there.
"""
