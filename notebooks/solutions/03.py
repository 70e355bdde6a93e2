# Lesson 03. Typical wrong answers: looking at the direct cause only (an answer to a hidden answer is shown); one pass
# over the comments in order of arrival (an answer that came before its question stays hidden for ever).


def visible(comments):
    shown = []
    more = True
    while more:
        more = False
        for comment in comments:
            if comment["id"] not in shown and (comment["reply_to"] is None or comment["reply_to"] in shown):
                shown.append(comment["id"])
                more = True
    return shown
