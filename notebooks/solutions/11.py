# Lesson 11. Typical wrong answers: only the primaries (what they lose with their disks is gone); the slowest replica
# (one that is away for a week fills the log); believing a deposed primary; forgetting a region that has not reported.
def safe_to_truncate(reports, terms):
    safe = dict.fromkeys(terms, 0)
    for region, epoch, primary, replicas in reports:
        if epoch == terms[region]:
            safe[region] = min(primary, max(replicas))
    return min(safe.values())
