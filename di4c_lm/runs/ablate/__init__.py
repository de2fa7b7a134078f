"""Studies of what helps a student: settings by seeds, each in a process of its own, and what came of them."""
