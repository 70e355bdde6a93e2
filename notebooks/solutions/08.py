# Lesson 08. Typical wrong answers: the farthest server instead of the nearest; one way instead of the round trip;
# counting the leader among those it waits for.


def least_ms(region, leader, regions, delay):
    others = sorted(delay(leader, other) + delay(other, leader) for other in regions if other != leader)
    needed = len(regions) // 2  # besides the leader
    quorum = others[needed - 1] if needed else 0
    return delay(region, leader) + quorum + delay(leader, region)
