// What is wrong with how the page looks, as sentences: run in the page by report_browser.rs at every size and scheme.
const faults = [];
const root = document.documentElement;
const box = (element) => element.getBoundingClientRect();
const named = (element) => `<${element.tagName.toLowerCase()} class="${element.getAttribute("class") ?? ""}"> `
  + JSON.stringify(element.textContent.trim().slice(0, 40));
const shown = ({ left, right, top, bottom }) => `[${[left, right, top, bottom].map(Math.round)}]`;
const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
const beside = (inner, outer) => inner.left < outer.left - 1 || inner.right > outer.right + 1;
const outside = (inner, outer) => beside(inner, outer) || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
const visible = (element) => box(element).width > 0 && box(element).height > 0;
const inline = (element) => getComputedStyle(element).display.startsWith("inline");
const pairs = (list, fault) => list.forEach((a, place) => list.slice(place + 1).forEach((b) => fault(a, b)));

if (root.scrollWidth > root.clientWidth) faults.push(`the page is ${root.scrollWidth} wide in ${root.clientWidth}`);

// No two blocks side by side in the tree overlap.
for (const parent of document.querySelectorAll("body, main, main *:not(svg):not(svg *):not(select)")) {
  const blocks = [...parent.children].filter((child) => visible(child) && !inline(child));
  pairs(blocks, (a, b) => {
    if (meet(box(a), box(b))) faults.push(`${named(a)} ${shown(box(a))} lies over ${named(b)} ${shown(box(b))}`);
  });
  for (const child of blocks) {
    const scrolls = getComputedStyle(parent).overflowX !== "visible";
    if (!scrolls && beside(box(child), box(parent))) faults.push(`${named(child)} sticks out of ${named(parent)}`);
  }
}

// Texts: every line of every text node; what a scrolled region hides is not there.
const seen = (rect, element) => {
  const found = { left: rect.left, right: rect.right, top: rect.top, bottom: rect.bottom };
  for (let around = element; around; around = around.parentElement) {
    if (getComputedStyle(around).overflowX === "visible") continue;
    found.left = Math.max(found.left, box(around).left);
    found.right = Math.min(found.right, box(around).right);
  }
  return found;
};
const texts = [];
const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode, holder = node.parentElement;
  if (!node.data.trim() || holder.closest("select") || !visible(holder)) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  for (const rect of range.getClientRects()) texts.push({ node, holder, rect: seen(rect, holder), whole: rect });
}
pairs(texts, (a, b) => {
  if (a.node !== b.node && meet(a.rect, b.rect)) faults.push(`text of ${named(a.holder)} over that of ${named(b.holder)}`);
});
for (const { holder, whole } of texts) {
  let block = holder;
  while (inline(block)) block = block.parentElement;
  if (!holder.closest("svg") && beside(whole, box(block))) faults.push(`text sticks out of ${named(block)}`);
}

for (const picture of document.querySelectorAll("img")) {
  if (!visible(picture)) { faults.push(`no size: ${picture.alt}`); continue; }
  const { width, height } = box(picture), ratio = picture.naturalWidth / picture.naturalHeight;
  if (!(picture.complete && picture.naturalWidth > 0)) faults.push(`not decoded: ${picture.alt}`);
  if (outside(box(picture), box(picture.parentElement))) faults.push(`wider than its cell: ${picture.alt}`);
  // Within a pixel of either side, as thin pictures are rounded.
  if (Math.abs(width - height * ratio) > 1 + ratio && Math.abs(height - width / ratio) > 1 + 1 / ratio) {
    faults.push(`stretched to ${width} × ${height}: ${picture.alt}`);
  }
}

for (const svg of document.querySelectorAll("svg")) {
  const labels = [...svg.querySelectorAll("text")];
  for (const label of labels) {
    if (outside(box(label), box(svg))) faults.push(`${named(label)} sticks out of its chart`);
    for (const dot of svg.querySelectorAll("circle")) {
      if (meet(box(label), box(dot))) faults.push(`${named(label)} under a dot`);
    }
  }
  pairs(labels, (a, b) => { if (meet(box(a), box(b))) faults.push(`${named(a)} over ${named(b)} in a chart`); });
}

// Contrast by WCAG 2.2: 4.5 for text, 3 for lines and for the borders of controls.
const channels = (colour) => (colour.match(/[\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
const luminance = (colour) => {
  const [red, green, blue] = channels(colour).map((byte) => byte / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const behind = (element) => {
  let around = element;
  while (around.parentElement && channels(getComputedStyle(around).backgroundColor)[3] === 0) around = around.parentElement;
  return getComputedStyle(around).backgroundColor;
};
const contrast = (element, colour, least) => {
  const [dark, light] = [colour, behind(element)].map(luminance).sort((a, b) => a - b);
  const found = (light + 0.05) / (dark + 0.05);
  if (!(found >= least)) faults.push(`contrast ${found.toFixed(2)} of ${colour} on ${behind(element)}: ${named(element)}`);
};
const controls = [...document.querySelectorAll("input, select")];
for (const element of new Set([...texts.map(({ holder }) => holder), ...controls])) {
  const style = getComputedStyle(element), scale = element.ownerSVGElement?.getScreenCTM().a ?? 1;
  contrast(element, element.ownerSVGElement ? style.fill : style.color, 4.5);
  const size = parseFloat(style.fontSize) * scale;
  if (size < 12) faults.push(`font of ${size.toFixed(1)} px: ${named(element)}`);
}
for (const line of document.querySelectorAll("svg .set, svg .base")) contrast(line, getComputedStyle(line).stroke, 3);
for (const control of controls) contrast(control.parentElement, getComputedStyle(control).borderTopColor, 3);

return [...new Set(faults)];
