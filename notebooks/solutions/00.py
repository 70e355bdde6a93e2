# Lesson 00. Typical wrong answers: leaving out the number or the hash before; joining with blanks or commas.
import hashlib


def entry_hash(zk_id, node_id, before):
    return hashlib.md5(f"{zk_id}{node_id}{before}".encode()).hexdigest()
