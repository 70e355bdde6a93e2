# Lesson 01. Typical wrong answers: the nearest replica whatever it has (misses the client's own write); `>` instead of
# `>=` (asks farther away than needed); the replica that is farthest along (always the same one, and never the nearest).


def route(seen, replicas):
    return next((name for name, reached in replicas if reached >= seen), "primary")
