/** HTML's names of characters, as far as models write them. */

/** At `lastIndex`: a named, decimal or hexadecimal entity; its group is what stands between & and ;. */
export const ENTITY = /&(#\d{1,7}|#[xX][\da-fA-F]{1,6}|[A-Za-z][A-Za-z\d]{1,11});/y;

const NAMES = Object.assign(Object.create(null), {
  amp: "&", lt: "<", gt: ">", quot: "\"", apos: "'", nbsp: "\u00a0", ensp: "\u2002",
  emsp: "\u2003", thinsp: "\u2009", shy: "\u00ad", copy: "©", reg: "®", trade: "™", deg: "°",
  plusmn: "±", times: "×", divide: "÷", minus: "−", frac12: "½", frac14: "¼", frac34: "¾",
  sup1: "¹", sup2: "²", sup3: "³", micro: "µ", middot: "·", bull: "•", hellip: "…", ndash: "–",
  mdash: "—", lsquo: "‘", rsquo: "’", sbquo: "‚", ldquo: "“", rdquo: "”", bdquo: "„",
  laquo: "«", raquo: "»", lsaquo: "‹", rsaquo: "›", prime: "′", Prime: "″", sect: "§", para: "¶",
  dagger: "†", Dagger: "‡", permil: "‰", iexcl: "¡", iquest: "¿", cent: "¢", pound: "£", yen: "¥",
  euro: "€", larr: "←", uarr: "↑", rarr: "→", darr: "↓", harr: "↔", lArr: "⇐", rArr: "⇒",
  hArr: "⇔", forall: "∀", exist: "∃", empty: "∅", nabla: "∇", isin: "∈", notin: "∉", prod: "∏",
  sum: "∑", radic: "√", infin: "∞", and: "∧", or: "∨", cap: "∩", cup: "∪", int: "∫", asymp: "≈",
  ne: "≠", equiv: "≡", le: "≤", ge: "≥", sub: "⊂", sup: "⊃", sube: "⊆", supe: "⊇", part: "∂",
  check: "✓", cross: "✗", star: "☆", hearts: "♥", szlig: "ß", aelig: "æ", oslash: "ø",
  aring: "å", ccedil: "ç", ntilde: "ñ", agrave: "à", aacute: "á", acirc: "â", auml: "ä",
  egrave: "è", eacute: "é", ecirc: "ê", euml: "ë", iacute: "í", icirc: "î", iuml: "ï",
  oacute: "ó", ocirc: "ô", ouml: "ö", ugrave: "ù", uacute: "ú", ucirc: "û", uuml: "ü",
  Auml: "Ä", Ouml: "Ö", Uuml: "Ü", Eacute: "É", Alpha: "Α", Beta: "Β", Gamma: "Γ", Delta: "Δ",
  Theta: "Θ", Lambda: "Λ", Pi: "Π", Sigma: "Σ", Phi: "Φ", Psi: "Ψ", Omega: "Ω", alpha: "α",
  beta: "β", gamma: "γ", delta: "δ", epsilon: "ε", zeta: "ζ", eta: "η", theta: "θ", iota: "ι",
  kappa: "κ", lambda: "λ", mu: "μ", nu: "ν", xi: "ξ", pi: "π", rho: "ρ", sigma: "σ", tau: "τ",
  phi: "φ", chi: "χ", psi: "ψ", omega: "ω",
});

/**
 * The character that an entity stands for.
 * @param {string} name without & and ;
 * @returns {?string} null for one that is not known
 */
export function decode(name) {
  if (name[0] !== "#") return NAMES[name] ?? null;
  const hexadecimal = name[1].toLowerCase() === "x";
  const code = Number.parseInt(name.slice(hexadecimal ? 2 : 1), hexadecimal ? 16 : 10);
  const text = code > 0 && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff);
  return text ? String.fromCodePoint(code) : null;
}
