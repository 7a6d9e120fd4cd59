/** The records of a data set, to be left out or answered otherwise: that makes a new version. */

import { classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { pathOf, request, requestText } from "./client.js";
import { announce, attempt } from "./notice.js";
import { partsOf, showMessages, textOf } from "./records.js";

const $ = (id) => document.getElementById(id);
const SHOWN = 50;

/**
 * Show the records of a version below the list.
 * @param {{id: string, name: string, training_file: string}} dataset
 * @param {() => Promise<void>} changed called after a new version
 */
export function editDataset(dataset, changed) {
  const form = $("editor");
  return attempt(async () => {
    const text = await requestText(pathOf("v1/files", dataset.training_file, "content"));
    const records = text.split("\n").filter(Boolean).map((line) => JSON.parse(line));
    $("editor-title").textContent = t("recordsOf", { name: dataset.name });
    const rows = records.slice(0, SHOWN).map(row);
    $("editor-records").replaceChildren(...rows.map(({ made }) => made));
    if (records.length > SHOWN) {
      $("editor-records").append(classed("p", "quiet", t("moreRecords", { count: records.length - SHOWN })));
    }
    $("editor-close").onclick = () => (form.hidden = true);
    form.onsubmit = (event) => {
      event.preventDefault();
      save(dataset, rows, changed);
    };
    form.hidden = false;
    form.focus();
  });
}

function row(record, at) {
  const { prompt, answer, rejected } = partsOf(record);
  const before = textOf(answer.content ?? answer.tool_calls);
  const field = element("textarea");
  field.rows = Math.min(8, Math.ceil(before.length / 80) + 1);
  field.value = before;
  // An answer that calls tools cannot be written as text.
  field.readOnly = typeof answer.content !== "string";
  const gone = element("input");
  gone.type = "checkbox";
  const made = classed("div", "record",
    showMessages(prompt),
    element("label", t("answerOf", { number: at + 1 }), field),
    ...(rejected ? [element("p", `${t("rejected")}:`), showMessages([rejected])] : []),
    classed("div", "checks", element("label", gone, element("span", t("leaveOut", { number: at + 1 })))));
  return { made, source: record.source, before, field, gone };
}

async function save({ id }, rows, changed) {
  const remove = rows.filter(({ gone }) => gone.checked).map(({ source }) => source);
  const edited = rows.filter(({ field, before, gone }) => !gone.checked && field.value !== before);
  const answers = Object.fromEntries(edited.map(({ source, field }) => [source, field.value]));
  if (!remove.length && !edited.length) return announce(t("nothingChanged"));
  await attempt(async () => {
    await request(pathOf("v1/datasets", id, "edit"), { json: { remove, answers } });
    $("editor").hidden = true;
    announce(t("changed"));
    await changed();
  });
}
