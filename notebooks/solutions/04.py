# Lesson 04. Typical wrong answers: only the links (a gap whose hash was made after the entry below it goes unnoticed);
# only neighbours' numbers (a forged hash goes unnoticed); forgetting that a chain begins with 1.
from pghc import ROOT, link


def first_anomaly(rows):
    number, digest = 0, ROOT
    for row in rows:
        if row.zk_id != number + 1 or row.hash != link(row.zk_id, row.node_id, digest):
            return row.zk_id
        number, digest = row.zk_id, row.hash
    return None
