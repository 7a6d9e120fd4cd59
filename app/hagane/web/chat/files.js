/** Files that go with the next message: texts, and the text of PDFs, which the server reads. */

import { ApiError, call } from "../shared/api.js";
import { button, classed } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { loadKey } from "../shared/keys.js";
import { details, explain } from "./errors.js";

/** Characters of one file; a model reads a few thousand words, a browser keeps a few million. */
const LONGEST = 200_000;
/** What text files in Japan are written in, most of them. */
const ENCODINGS = ["utf-8", "shift_jis"];

/** The files chosen for the message that is being written. */
export class Attachments {
  /**
   * @param {HTMLElement} list where they are shown
   * @param {(text: string) => void} refuse told why a file cannot be taken
   */
  constructor(list, refuse) {
    this.list = list;
    this.refuse = refuse;
    /** @type {{name: string, text: string}[]} */
    this.files = [];
  }

  /** @param {Iterable<File>} files */
  async add(files) {
    this.refuse("");
    for (const file of files) {
      const { text, why } = await this.#read(file);
      if (text === undefined) this.refuse(why);
      else this.files.push({ name: file.name, text });
    }
    this.#show();
  }

  /** @returns {Promise<{text?: string, why?: string}>} the text, or why there is none */
  async #read(file) {
    const { name } = file;
    if (file.type.startsWith("image/")) return { why: t("imageRefused", { name }) };
    if (file.type === "application/pdf") {
      this.list.append(classed("span", "file", t("reading", { name })));
      return readPdf(file);
    }
    const text = file.size > 4 * LONGEST ? null : await readText(file);
    return text === null || text.length > LONGEST ? { why: t("fileRefused", { name }) } : { text };
  }

  /** @returns {{name: string, text: string}[]} the files, which are then no longer chosen */
  take() {
    const taken = this.files;
    this.files = [];
    this.#show();
    return taken;
  }

  #show() {
    this.list.replaceChildren(...this.files.map((file) => {
      const remove = button("detach", () => {
        this.files.splice(this.files.indexOf(file), 1);
        this.#show();
      });
      remove.textContent = "×";
      remove.setAttribute("aria-label", t("detach", { name: file.name }));
      return classed("span", "file", file.name, remove);
    }));
  }
}

/** Have the server read a PDF. */
async function readPdf(file) {
  try {
    const headers = { "Content-Type": "application/pdf" };
    const response = await call("v1/documents/text", loadKey("key"), { method: "POST", headers, body: file });
    const { text, pages, of } = await response.json();
    return { text: pages < of ? `${text}\n\n${t("pagesLeftOut", { pages, of })}` : text };
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    const why = error.status === 400 ? details(error)[0] : explain(error);
    return { why: t("pdfRefused", { name: file.name, why }) };
  }
}

/** @returns {Promise<?string>} null for what is no text */
async function readText(file) {
  const bytes = await file.arrayBuffer();
  for (const encoding of ENCODINGS) {
    try {
      const text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
      return text.includes("\0") ? null : text;
    } catch {
      // Not in this one.
    }
  }
  return null;
}

/**
 * Let files come by the button, by dragging and by pasting.
 * @param {Attachments} attachments
 * @param {HTMLInputElement} picker
 * @param {HTMLElement} opener
 * @param {HTMLElement} target where they may be dropped
 */
export function acceptFiles(attachments, picker, opener, target) {
  opener.addEventListener("click", () => picker.click());
  picker.addEventListener("change", async () => {
    await attachments.add(picker.files);
    picker.value = "";
  });
  target.addEventListener("dragover", (event) => event.preventDefault());
  target.addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    attachments.add(event.dataTransfer.files);
  });
  target.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    attachments.add(event.clipboardData.files);
  });
}
