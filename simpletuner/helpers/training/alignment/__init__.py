"""What the regularizers are composed of: geometry, losses, projectors, schedule and teachers.

Imports torch and the teacher library only, so that it works in any training loop.
"""
