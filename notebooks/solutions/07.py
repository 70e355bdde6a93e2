# Lesson 07. Typical wrong answers: a new id for each attempt (the append stands twice); giving up after an indefinite
# error (needlessly); swallowing the last error.
from pghc import Conflict, Indefinite, Unavailable


def append_once(append, new_id, tries):
    request_id = new_id()
    for attempt in range(1, tries + 1):
        try:
            return append(request_id)
        except (Unavailable, Conflict, Indefinite):
            if attempt == tries:
                raise
