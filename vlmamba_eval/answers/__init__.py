"""Answers that somebody else's program produced: whose layout a file has, and which question each answer belongs to."""
