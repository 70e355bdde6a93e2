# Lesson 10. Typical wrong answers: retrying after ConnectionLoss without a look at whose number it was (a hole); only
# the last taker's id in the node (another one may have come in between); a new node for each attempt.
import json

from kazoo.exceptions import BadVersionError, ConnectionLoss, NodeExistsError


class MySequencer:
    def __init__(self, client, folder):
        self.client, self.node = client, f"{folder}/takers"
        try:
            client.create(self.node, b"[]", makepath=True)
        except NodeExistsError:
            pass

    def take(self, request_id):
        while True:
            try:
                data, stat = self.client.get(self.node)
                takers = json.loads(data)
                if request_id in takers:
                    return takers.index(request_id) + 1
                self.client.set(self.node, json.dumps([*takers, request_id]).encode(), version=stat.version)
            except (BadVersionError, ConnectionLoss):
                pass  # look again: the list says whether we are in it
