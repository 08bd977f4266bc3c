"""How the documentation shows a name: its signature, its one line, and a table of its parameters. Written by hand."""
import inspect
import re

from fastcore.docments import docments
from nbdev.showdoc import BasicMarkdownRenderer


def text(x) -> str:
    "An annotation or a default in words; empty when there is none."
    if x is None or x is inspect.Parameter.empty: return ''
    return getattr(x, '__qualname__', None) or re.sub(r' at 0x[0-9a-f]+|\btorch\.|\btyping\.', '', str(x))


def cell(s: str) -> str:
    "`s` made safe for a cell of a Markdown table; code in backticks stays as it is, but for the bar."
    parts = re.split(r'(`[^`]*`|\$[^$]*\$)', s.replace('\n', ' '))
    return ''.join(p if i % 2 else re.sub(r'([*<>\[\]])', r'\\\1', p) for i, p in enumerate(parts)).replace('|', r'\|')


def code(s: str) -> str:
    "`s` as code, or nothing."
    return f'`{s}`'.replace('|', r'\|') if s else ''


class TableRenderer(BasicMarkdownRenderer):
    "nbdev's entry with a signature that fits and a table of parameters in place of commented lines."

    def signature(self) -> str:
        if self.sig is None: return self.nm
        word = 'class' if inspect.isclass(self.sym) else 'def'
        parts = [str(p.replace(annotation=inspect.Parameter.empty)) for p in self.sig.parameters.values()]
        name = re.compile(r'<(?:function|class) \'?([\w.]+)\'?(?: at 0x\w+)?>')
        parts = [name.sub(lambda m: m[1].split('.')[-1], p) for p in parts]
        kinds = [p.kind for p in self.sig.parameters.values()]
        if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
            parts.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), '*')
        line = f'{word} {self.nm}({", ".join(parts)})'
        return line if len(line) <= 96 else f'{word} {self.nm}(\n    ' + ',\n    '.join(parts) + ')'

    def table(self) -> str:
        try: rows = dict(docments(self.sym, full=True))
        except Exception: return ''
        back = rows.pop('return', None)
        def shown(v): return repr(v) if v is None or isinstance(v, str) else text(v)
        out = [(f'`{k}`', code(text(v.get('anno'))),
                code(shown(v.get('default'))),
                cell(v.get('docment') or '')) for k, v in rows.items() if k != 'self']
        if back and (back.get('docment') or text(back.get('anno'))):
            out.append(('**Returns**', code(text(back.get('anno'))), '', cell(back.get('docment') or '')))
        if not any(r[3] for r in out): return ''
        lines = [('', 'Type', 'Default', 'Details'), ('---',)*4, *out]
        return '\n'.join('| ' + ' | '.join(r) + ' |' for r in lines)

    def _repr_markdown_(self):
        "nbdev's heading and [source] link, then ours."
        head = super()._repr_markdown_().split('```python', 1)[0]
        docs = self.docs or ''
        about = f'*{docs}*' if docs and '\n' not in docs.strip() and '*' not in docs else docs
        return '\n\n'.join(p for p in (head.rstrip(), f'```python\n{self.signature()}\n```', about, self.table()) if p)
