"""Whatever measures verdicts and repairs where the truth is known, and keeps the records of it."""
