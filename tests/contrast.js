// Texts of a page whose contrast with their ground is below WCAG 2.2's AA (1.4.3): 4.5, and 3 for
// large ones and icons. Returns [ratio, colour, ground, text] of each. Texts on a canvas are not seen.
() => {
  const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const parsed = (colour) => {
    pixel.clearRect(0, 0, 1, 1);
    pixel.fillStyle = colour;
    pixel.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pixel.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], ground) =>
    [r, g, b].map((one, i) => one * a + ground[i] * (1 - a)).concat(1);
  const luminance = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((one) => {
      const c = one / 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ancestors = (element) => {
    const found = [];
    for (let one = element; one; one = one.parentElement) found.push(one);
    return found;
  };
  const ratio = (element) => {
    const above = ancestors(element);
    let ground = [255, 255, 255, 1];
    for (const one of [...above].reverse()) {
      ground = over(parsed(getComputedStyle(one).backgroundColor), ground);
    }
    const colour = parsed(getComputedStyle(element).color);
    for (const one of above) colour[3] *= Number(getComputedStyle(one).opacity);
    const [low, high] = [luminance(over(colour, ground)), luminance(ground)].sort((a, b) => a - b);
    return [(high + 0.05) / (low + 0.05), getComputedStyle(element).color, ground.slice(0, 3).map(Math.round)];
  };
  const texts = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    if (text) texts.set(walker.currentNode.parentElement, text);
  }
  for (const input of document.querySelectorAll("input, textarea")) {
    if (input.value) texts.set(input, input.value);
  }
  const faint = [];
  for (const [element, text] of texts) {
    if (["SCRIPT", "STYLE", "NOSCRIPT", "TEMPLATE"].includes(element.tagName)) continue;
    const box = element.getBoundingClientRect();
    if (!element.checkVisibility({ visibilityProperty: true, opacityProperty: true }) || !box.width || !box.height) continue;
    if (element.closest("[disabled], .disabled, [aria-disabled=true]")) continue;
    const style = getComputedStyle(element);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const wanted = large || element.closest(".q-icon") ? 3 : 4.5;
    const [found, colour, ground] = ratio(element);
    if (found < wanted) faint.push([Number(found.toFixed(2)), colour, String(ground), text.slice(0, 60)]);
  }
  return faint;
}
