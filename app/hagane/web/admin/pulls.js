/** Models of the hub, fetched into the server's store. */

import { breakable, button, classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { pathOf, request } from "./client.js";
import { addFields } from "./fields.js";
import { actions, moment, showList, size } from "./list.js";
import { announce, attempt } from "./notice.js";
import { submit } from "./submit.js";

const $ = (id) => document.getElementById(id);
const FIELDS = [
  ["model", "hubModel", { required: "", minlength: "3", maxlength: "512", wide: true, placeholder: "OWNER/NAME", "data-help": "hubModelHelp", spellcheck: "false" }],
  ["name", "storedAs", { maxlength: "128", "data-help": "storedAsHelp", spellcheck: "false" }],
];
const STATES = { running: "pulling", cancelling: "ending", succeeded: "succeeded", failed: "failed", cancelled: "cancelled" };
const COLOURS = { cancelling: "paused", cancelled: "paused" };

/** Make the form work. */
export function preparePulls() {
  addFields($("pull-fields"), FIELDS);
  $("pull-form").onsubmit = (event) => {
    event.preventDefault();
    pull(event.target);
  };
}

function pull(form) {
  const { model, name } = form.elements;
  return submit(form, $("pull-error"), async () => {
    const json = { model: model.value.trim() };
    if (name.value.trim()) json.name = name.value.trim();
    await request("admin/models/pull", { json });
    form.reset();
    announce(t("changed"));
    await refreshPulls();
  });
}

/** Show those that go on and the last that ended. */
export async function refreshPulls() {
  const { data } = await request("admin/models/pulls");
  $("pull-list").hidden = !data.length;
  showList($("pull-list"), data, ({ id }) => id, row);
}

function row(one) {
  const { id, model, name, status, received_bytes: received, total_bytes: total, error, created_at: created } = one;
  const badge = classed("span", `badge ${COLOURS[status] ?? status}`, t(STATES[status] ?? status));
  const about = element("p", ...breakable(model), ` · ${t("of", { part: size(received), whole: size(total) })} · `, moment(created));
  about.className = "quiet";
  const card = classed("li", "card", element("h3", ...breakable(name), " ", badge), about);
  if (status === "running") {
    const bar = element("progress");
    [bar.max, bar.value] = [Math.max(total, 1), received];
    bar.setAttribute("aria-label", name);
    card.append(bar, actions([button("cancelPull", () => cancel(id))], name));
  }
  if (error) card.append(classed("p", "trouble", error));
  return card;
}

function cancel(id) {
  return attempt(async () => {
    await request(pathOf("admin/models/pulls", id, "cancel"), { method: "POST" });
    announce(t("changed"));
    await refreshPulls();
  });
}
