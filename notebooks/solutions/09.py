# Lesson 09. Typical wrong answers: asking for every entry; halving without a look at the last entry first (says 1 or n
# for equal chains); off by one at the first entry.


def first_difference(ours, theirs, n):
    if ours(n) == theirs(n):
        return None
    low, high = 1, n  # the first difference is from low to high
    while low < high:
        middle = (low + high) // 2
        if ours(middle) == theirs(middle):
            low = middle + 1
        else:
            high = middle
    return low
