// node tools/check_math.js _docs   Parses every formula of the built pages with the vendored KaTeX; exit 1 if one fails.
const fs = require('fs'), path = require('path');
const katex = require(path.join(__dirname, 'katex', 'katex.min.js'));
const entities = {lt: '<', gt: '>', amp: '&', quot: '"', '#39': "'", '#x27': "'", nbsp: ' '};
const unescape = s => s.replace(/<[^>]*>/g, '').replace(/&(#?\w+);/g, (m, e) => e in entities ? entities[e] : m);
const pages = function* (dir) {
  for (const e of fs.readdirSync(dir, {withFileTypes: true})) {
    const p = path.join(dir, e.name);
    if (e.isDirectory() && e.name !== 'site_libs') yield* pages(p);
    else if (e.name.endsWith('.html')) yield p;
  }
};
let count = 0, bad = 0;
for (const page of pages(process.argv[2])) {
  const html = fs.readFileSync(page, 'utf8').replace(/<(script|style|pre|code|textarea)\b[\s\S]*?<\/\1>/g, '');
  for (const m of html.matchAll(/\\\(([\s\S]*?)\\\)|\\\[([\s\S]*?)\\\]/g)) {
    const display = m[2] !== undefined, tex = unescape(display ? m[2] : m[1]);
    count++;
    try { katex.renderToString(tex, {displayMode: display, throwOnError: true, strict: 'ignore'}); }
    catch (e) { bad++; console.log(`${page}: ${e.message}\n    ${tex.trim()}`); }
  }
}
console.log(`${count} formulas, ${bad} bad`);
process.exit(bad ? 1 : 0);
