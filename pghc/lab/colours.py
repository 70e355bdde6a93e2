"""The colours of figures: told apart by everybody (Okabe and Ito, 2008), and never by colour alone."""

#: One a region, or a writer, in their order; beside each a style of line and a marker.
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v")

#: What offends; what stands in the background; text.
RED, GREY, INK = "#D55E00", "#8C8C8C", "#222222"
