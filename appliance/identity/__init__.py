"""People: who acts, and under which pseudonym."""
