"""What runs the graph: the job, the sensor, the schedule, and how a run speaks on the console.

What the assets do belongs to their stages.
"""
