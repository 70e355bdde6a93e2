# Lesson 02. Typical wrong answers: deleting the disputed seat everywhere, the winner's row, too; deleting where it is
# not held.


def to_delete(tables, winners):
    return {
        region: {seat for seat, owner in table.items() if seat in winners and owner != winners[seat]}
        for region, table in tables.items()
    }
