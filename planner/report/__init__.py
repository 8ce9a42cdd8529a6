"""What a person reads of a plan: one document, shown on a terminal or written as Markdown.

- `blocks`: the document, sections of paragraphs, lists and tables
- `numbers`: how figures are written
- `context`, `promises`: plan -> document, every sentence and figure once
- `evaluation`: evaluation of a given fleet -> document, with the same sections
- `terminal`: document -> text for a terminal, a pipe or a file
- `markdown`: document -> Markdown
- `progress`: the line that tells how far solving is
"""
