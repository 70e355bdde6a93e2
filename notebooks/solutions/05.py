# Lesson 05. Typical wrong answers: the largest group (may be a minority of all); half is enough (both halves decide);
# counting only servers that are alive.


def may_go_on(groups, total):
    return next((group for group in groups if len(group) > total / 2), None)
