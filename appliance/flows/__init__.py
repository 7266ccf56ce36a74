"""One file per verb or noun: the order of steps and the transactions around them.

A flow is the only place where rooms meet: it takes values from one, hands them to the next, and moves state only
inside `ledger.transaction`. Files are written before the row that names them, so a crash leaves litter, never a hole.
"""
