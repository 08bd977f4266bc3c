"""Build the documentation into _docs/, and README.md from nbs/index.ipynb, without Quarto and without a network.

    python tools/docs.py [--strict]

Saved outputs are shown as they are: only imports and exported cells are run, to read signatures. The steps are nbdev's
processing (`_proc`), a staged copy whose links work locally (`_site_src`), smalldocs, and a local KaTeX. With --strict
every warning, a stale made file (README.md, nbs/sidebar.yml, nbs/nbdev.yml), an address of a foreign host that a page
would load, a leftover `:::` and a formula that does not parse make the exit code 1.
"""
import argparse, json, os, posixpath, re, shutil, subprocess, sys
from pathlib import Path
import live

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault('OMP_NUM_THREADS', '1')  # small tensors: on a busy machine more threads wait for each other
KATEX_CDN = 'https://cdn.jsdelivr.net/npm/katex@0.16.11/dist'
RUNS = ['train_edm', 'train_cd', 'train_ct', 'train_pd', 'generate', 'edit_images', 'tune_levels', 'evaluate_model', 'compare_methods', 'benchmark', 'scaling']
SCROLL = ("<script>{const bar = document.getElementById('quarto-sidebar'), here = bar?.querySelector('a.active'); "
          "if (here) bar.scrollTop = here.offsetTop - bar.clientHeight / 2}</script>")   # the page that is open is in sight
TUTORIALS = ['plane', 'own_pictures', 'editing', 'play', 'health', 'other_codebases', 'full_scale']


def sidebar():
    "The text of nbs/sidebar.yml: the numbered road, the runs, the tutorials, whatever of them is there."
    names = sorted(p.stem for p in Path('nbs').glob('*.ipynb') if p.stem != 'index')
    road = [n for n in names if n[0].isdigit()]
    def ordered(names, known): return sorted(names, key=lambda n: (known.index(n) if n in known else len(known), n))
    runs = ordered((n for n in names if not n[0].isdigit()), RUNS)
    tutorials = [f'tutorials/{n}' for n in ordered((p.stem for p in Path('nbs/tutorials').glob('*.ipynb')), TUTORIALS)]
    def entry(n):
        if not n[0].isdigit(): return f'          - {n}.ipynb'
        title = next(l[2:].strip() for c in json.loads(Path(f'nbs/{n}.ipynb').read_text(encoding='utf-8'))['cells']
                     for l in ''.join(c['source']).splitlines() if l.startswith('# '))
        return f'          - {{text: "{n.split("_")[0]} {title}", href: {n}.ipynb}}'
    lines = ['# Made by tools/docs.py from the notebooks that are there.', 'website:', '  sidebar:', '    style: docked', '    contents:', '      - index.ipynb']
    first = [n for n in tutorials if n == 'tutorials/plane']   # where a newcomer begins
    tutorials = [n for n in tutorials if n not in first]
    for title, group in [('Learn', first + road), ('Tutorials', tutorials), ('Runs', runs)]:
        if group: lines += [f'      - section: {title}', '        contents:', *map(entry, group)]
    return '\n'.join(lines) + '\n'


def find_self():
    "Let nbdev find the package's name index even where the package is not installed."
    info = ROOT/'_proc.info'/'consistency_nb-0.dist-info'
    info.mkdir(parents=True, exist_ok=True)
    (info/'METADATA').write_text('Metadata-Version: 2.1\nName: consistency_nb\nVersion: 0\n')
    (info/'entry_points.txt').write_text('[nbdev]\nconsistency_nb = consistency_nb._modidx:d\n')
    sys.path[:0] = [str(ROOT), str(info.parent)]


def process():
    "nbdev's processing of nbs/ into _proc/, by its parts: its commands would try to install Quarto."
    import nbdev.doclinks
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    Path('nbs/sidebar.yml').write_text(sidebar(), encoding='utf-8')
    refresh_quarto_yml()
    nbdev.doclinks._build_modidx()
    try: proc_nbs('nbs', n_workers=2, force=True)  # the relative path: an absolute one fails below a dot folder
    finally: shutil.rmtree(ROOT/'_proc.info', ignore_errors=True)


def front_matter(nb):
    "The YAML cell that nbdev put first, as a dict, and the cell."
    import yaml
    for c in nb['cells']:
        s = ''.join(c['source'])
        if c['cell_type'] == 'raw' and s.startswith('---'): return yaml.safe_load(s.strip().strip('-')) or {}, c
    return {}, None


def page_names():
    "Where each notebook of _proc becomes a page: {'00_core.ipynb': 'core.ipynb', ...}."
    names = {}
    for p in sorted(Path('_proc').rglob('*.ipynb')):
        rel = p.relative_to('_proc')
        out = front_matter(json.loads(p.read_text(encoding='utf-8')))[0].get('output-file', rel.with_suffix('.html').name)
        new = rel.with_name(out).with_suffix('.ipynb').as_posix()
        if new in names.values(): raise SystemExit(f'two notebooks would make the page {new}: number and name of one must change')
        names[rel.as_posix()] = new
    return names


def stage(names, site_url):
    "Copy _proc to _site_src under the pages' names, with every link between pages made local."
    import yaml
    src = Path('_site_src')
    shutil.rmtree(src, ignore_errors=True)
    shutil.copytree('_proc', src)
    for old, new in names.items():
        nb = json.loads((src/old).read_text(encoding='utf-8'))
        (src/old).unlink()
        meta, cell = front_matter(nb)
        if cell: cell['source'] = '---\n' + yaml.safe_dump({k: v for k, v in meta.items() if k != 'output-file'}, allow_unicode=True) + '---\n'

        def local(m):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(old), m[1]))
            return f'](/{names[target]}{m[2] or ""}' if target in names else m[0]

        def named(m):   # a page by its number and name, as in `16a_objective`
            target = f'{m[1]}_{m[2]}.ipynb'
            return f'[{m[1]} {m[2]}](/{names[target]})' if target in names else m[0]

        code = '\n'.join(''.join(c['source']) for c in json.loads((Path('nbs')/old).read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code')
        taken = {(m, name) for m, names in re.findall(r'from consistency_nb\.(\w+) import (\([^)]*\)|[^\n]*)', code) for name in re.findall(r'\w+', names)}

        def meant(m):   # nbdev links every name it knows; a plain word is one only on its own page, or where it is imported
            plain, own = re.fullmatch('[a-z]+', m[1]), Path(new).stem == m[2]
            return m[0] if not plain or own or (m[2], m[1]) in taken else f'`{m[1]}`'

        def fix(lines):
            s = ''.join(lines)
            s = re.sub(r'^\| \[(`\w+`)\]\([^)]*\)', r'| \1', s, flags=re.M)   # a parameter in its table is no such name
            s = re.sub(r'\[`(\w+)`\]\(' + re.escape(site_url) + r'/(\w+)\.html#\1\)', meant, s)
            s = s.replace(site_url + '/', '/')
            s = re.sub(r'(?<![\[`])`(\d\d[a-z]?)_(\w+)`', named, s)
            return re.sub(r'\]\(([^)\s:]+\.ipynb)(#[^)\s]*)?', local, s)

        for c in nb['cells']:
            if c['cell_type'] == 'markdown': c['source'] = fix(c['source'])
            for o in c.get('outputs', []):
                for k in ('text/markdown', 'text/html'):
                    if k in o.get('data', {}): o['data'][k] = fix(o['data'][k])
        (src/new).parent.mkdir(parents=True, exist_ok=True)
        (src/new).write_text(json.dumps(nb), encoding='utf-8')
    (src/'sidebar.yml').write_text(re.sub(r'(- |href: )([^\s{}]+\.ipynb)', lambda m: m[1] + names[m[2]], Path('nbs/sidebar.yml').read_text(encoding='utf-8')), encoding='utf-8')
    shutil.copy('_quarto.yml', src/'_quarto.yml')  # the root file: nbs/_quarto.yml is a link, which some checkouts break
    return src


def localise_katex(out):
    "Serve KaTeX from the site itself, and leave out the theme's web font: the next font of its list does."
    shutil.copytree(ROOT/'tools'/'katex', out/'site_libs'/'katex', dirs_exist_ok=True)
    for page in out.rglob('*.html'):
        s = page.read_text(encoding='utf-8')
        up = '../'*(len(page.relative_to(out).parts) - 1)
        if KATEX_CDN in s: page.write_text(s.replace(KATEX_CDN, f'{up}site_libs/katex'), encoding='utf-8')
    for css in out.rglob('*.css'):
        s = css.read_text(encoding='utf-8')
        if '@import' in s: css.write_text(re.sub(r'@import\s*(?:url\([^)]*\)|"[^"]*"|\'[^\']*\')[^;]*;', '', s), encoding='utf-8')


def reachable(out):
    """What a browser check would find: regions that scroll are reached by keyboard, icons beside their word are not read
    out, a page has an icon, and a link to a method leads to its class, which has the anchor."""
    html = {p.relative_to(out).as_posix(): p.read_text(encoding='utf-8') for p in out.rglob('*.html') if 'site_libs' not in p.parts}
    ids = {name: set(re.findall(r'\bid="([^"]+)"', s)) for name, s in html.items()}
    for name, s in html.items():
        def anchor(m):
            page = posixpath.normpath(posixpath.join(posixpath.dirname(name), m[1])) if m[1] else name
            known = page not in ids or m[2] in ids[page] or '%' in m[2]
            return m[0] if known or '.' not in m[2] else f'href="{m[1]}#{m[2].split(".")[0]}"'
        s = re.sub(r'href="([^"#:]*)#([^"]+)"', anchor, s)
        s = re.sub(r'<pre(?![^>]*tabindex)', '<pre tabindex="0"', s)
        s = s.replace('<div class="sd-table">', '<div class="sd-table" tabindex="0">')
        s = re.sub(r'(<i class="bi[^"]*") role="img"', r'\1 aria-hidden="true"', s)
        up = '../' * name.count('/')
        s = s.replace('</body>', SCROLL + '</body>', 1)
        (out/name).write_text(s.replace('</head>', f'<link rel="icon" href="{up}images/icon.svg"></head>', 1), encoding='utf-8')


def colab(out, names, repo):
    "A link beside a page that opens its notebook in Colab, if that installs the package there or does without."
    blob = repo.replace('github.com', 'colab.research.google.com/github')
    for old, new in names.items():
        text = (Path('nbs')/old).read_text(encoding='utf-8')
        if 'from consistency_nb' in text and 'google.colab' not in text: continue
        page = (out/new).with_suffix('.html')
        link = f'<a href="{blob}/nbs/{old}" class="toc-action"><i class="bi bi-play-btn" aria-hidden="true"></i> Open in Colab</a>'
        s = page.read_text(encoding='utf-8')
        page.write_text(s.replace('<div class="action-links">', f'<div class="action-links">{link}', 1), encoding='utf-8')


def llms(names, site_url):
    "Pages and what each promises, as plain text for programs that read (llms.txt)."
    lines = []
    for old, new in names.items():
        meta = front_matter(json.loads((Path('_proc')/old).read_text(encoding='utf-8')))[0]
        url = f'{site_url}/{posixpath.splitext(new)[0]}.html'
        lines.append(f'- [{meta.get("title", new)}]({url}): {meta.get("description", "")}'.rstrip(': '))
    return '\n'.join(['# consistency_nb', '', '> Consistency models as a package you can read, run and trust.', '', '## Pages', '', *lines, ''])


def card(out, site_url):
    "The picture that is shown where a page is linked to."
    tag = f'<meta property="og:image" content="{site_url}/images/onestep.png"><meta name="twitter:image" content="{site_url}/images/onestep.png"></head>'
    for page in out.rglob('*.html'):
        if 'site_libs' in page.parts: continue
        s = page.read_text(encoding='utf-8').replace('content="summary"', 'content="summary_large_image"')
        if 'og:image' not in s: page.write_text(s.replace('</head>', tag, 1), encoding='utf-8')


def readme(names, site_url):
    "GitHub Markdown from _proc/index.ipynb: links lead to the notebooks, pictures to nbs/images."
    nb = json.loads(Path('_proc/index.ipynb').read_text(encoding='utf-8'))
    pages = {posixpath.splitext(new)[0] + '.html': old for old, new in names.items()}

    def link(m):
        url, tail = m[1], m[2] or ''
        if url.startswith(site_url + '/'):
            page = url[len(site_url) + 1:]
            return f'](nbs/{pages[page]}' if page in pages else m[0]
        if re.match(r'[a-z]+:|#|/', url): return m[0]
        return f']({posixpath.normpath(posixpath.join("nbs", url))}{tail}'

    def markdown(s):
        if s.lstrip().startswith('<!-- WARNING'): return ''
        there = f'[The site]({site_url}/) has all pages, and this model, drawing in your browser.\n'
        s = re.sub(r'^<div id="live-model">.*</div>\n', there, s, flags=re.M)
        parts = re.split(r'(^```.*?^```[^\n]*$|`[^`\n]+`(?!\]))', s, flags=re.M | re.S)  # leave code alone
        for i in range(0, len(parts), 2):
            p = re.sub(r'\]\(([^)\s#]+)(#[^)\s]*)?', link, parts[i])
            p = re.sub(r'(\))\{[^}\n]*\}', r'\1', p)                             # attributes of links and pictures
            parts[i] = re.sub(r'^(#+ .*?) *\{[^}\n]*\}$', r'\1', p, flags=re.M)  # and of headings
        s = ''.join(parts)

        def callout(m):
            title = re.search(r'title="([^"]*)"', m[1])
            body = ([f'**{title[1]}**', ''] if title else []) + [re.sub(r'^#+ (.*)$', r'**\1**', l) for l in m[3].strip().split('\n')]
            return '\n'.join([f'> [!{m[2].upper()}]', *(f'> {l}'.rstrip() for l in body)])

        s = re.sub(r'^:{3,} *\{([^}\n]*\.callout-(note|tip|warning|important|caution)[^}\n]*)\}\n(.*?)^:{3,} *$', callout, s, flags=re.M | re.S)
        return re.sub(r'^:{3,}.*\n?', '', s, flags=re.M).strip()

    def output(o):
        data = o.get('data', {})
        if 'text/markdown' in data: return markdown(''.join(data['text/markdown']))
        if any(k.startswith('image/') for k in data) or o.get('name') == 'stderr': return ''
        s = ''.join(data.get('text/plain', o.get('text', []))).rstrip()
        return f'```text\n{s}\n```' if s else ''

    meta = front_matter(nb)[0]
    out = [f'<!-- Made from nbs/index.ipynb by tools/docs.py: edit the notebook. -->\n\n# {meta["title"]}']
    if 'description' in meta: out.append(f'> {meta["description"]}')
    for c in nb['cells']:
        s = ''.join(c['source'])
        if c['cell_type'] == 'markdown': out.append(markdown(s))
        if c['cell_type'] != 'code': continue
        options = dict(re.findall(r'^#\| *([\w-]+): *(\S+) *$', s, flags=re.M))
        code = re.sub(r'^#\|.*\n?', '', s, flags=re.M).strip()
        if code and options.get('echo') != 'false': out.append(f'```python\n{code}\n```')
        if options.get('output') != 'false': out += [output(o) for o in c.get('outputs', [])]
    return '\n\n'.join(p for p in out if p) + '\n'


def faults(out, pages):
    "What a strict build does not forgive in the finished pages."
    found = []
    html = [p for p in out.rglob('*.html') if 'site_libs' not in p.parts]
    if len([p for p in html if p.name != '404.html']) < pages: found.append(f'{len(html)} pages for {pages} notebooks')
    for p in sorted(html):
        name, s = p.relative_to(out).as_posix(), p.read_text(encoding='utf-8')
        loads = re.findall(r'<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc="((?:https?:)?//[^"]+)"', s)
        loads += [u for tag in re.findall(r'<link\b[^>]*>', s) if not re.search(r'rel="(?:canonical|alternate|next|prev)"', tag)
                  for u in re.findall(r'href="((?:https?:)?//[^"]+)"', tag)]
        found += [f'{name}: loads {u} from elsewhere' for u in loads]
        text = re.sub(r'<(script|style|pre|code)\b.*?</\1>', '', s, flags=re.S)
        if ':::' in text: found.append(f'{name}: a leftover `:::`')
    for p in out.rglob('*.css'):
        found += [f'{p.relative_to(out)}: loads {u}' for u in re.findall(r'url\(["\']?((?:https?:)?//[^)"\']+)', p.read_text(encoding='utf-8'))]
    return found


def maths(out):
    "Faults of the formulas, if node is there to parse them."
    if not shutil.which('node'):
        print('no node here: the formulas were not parsed')
        return []
    res = subprocess.run(['node', 'tools/check_math.js', str(out)], capture_output=True, text=True)
    print(res.stdout.strip().rsplit('\n', 1)[-1])
    return [] if res.returncode == 0 else (res.stdout + res.stderr).strip().split('\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--strict', action='store_true', help='exit with 1 on any warning or stale file')
    strict = parser.parse_args().strict
    os.chdir(ROOT)
    os.environ.pop('IN_TEST', None)
    os.environ['PYTHONWARNINGS'] = 'ignore:Found cells containing imports,ignore::SyntaxWarning'
    find_self()
    made = [Path(p) for p in ('README.md', 'nbs/sidebar.yml', 'nbs/nbdev.yml')]
    before = [p.read_text(encoding='utf-8') if p.exists() else None for p in made]
    process()

    from nbdev.config import get_config
    from smalldocs.site import build
    cfg = get_config()
    site_url = cfg.doc_host.rstrip('/') + cfg.doc_baseurl.rstrip('/')
    names = page_names()
    site = build(stage(names, site_url), quiet=True)
    localise_katex(site.out)
    shutil.rmtree('_docs', ignore_errors=True)
    shutil.copytree(site.out, '_docs')
    live.add(Path('_docs'))
    (Path('_docs')/'images').mkdir(exist_ok=True)
    shutil.copy('nbs/images/icon.svg', '_docs/images')
    reachable(Path('_docs'))
    card(Path('_docs'), site_url)
    colab(Path('_docs'), names, f'{cfg.git_url}/blob/{cfg.branch}')
    Path('_docs/llms.txt').write_text(llms(names, site_url), encoding='utf-8')
    Path('README.md').write_text(readme(names, site_url), encoding='utf-8')

    stale = [f'{p} was stale; it is fresh now: look at it and commit it' for p, b in zip(made, before) if p.read_text(encoding='utf-8') != b]
    found = [*site.warnings, *stale, *faults(Path('_docs'), len(names)), *maths(Path('_docs'))]
    for f in found: print(f'WARNING {f}')
    print(f'{len(names)} pages in _docs/, {len(found)} warnings')
    return 1 if strict and found else 0


if __name__ == '__main__': sys.exit(main())
