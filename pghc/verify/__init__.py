"""Verification: the hash chain, histories, the checker and its verdicts. Only `audit` asks servers."""
