"""Pages that open anywhere: one file each, without network or JavaScript, in light, dark and print.

A page is a Jinja template beside the module that fills it; what several share stands here: layout,
style, number formats and charts.
"""
