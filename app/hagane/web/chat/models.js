/** The choice of models, and the key that the server may want before it names any. */

import { ApiError, listModels } from "../shared/api.js";
import { t } from "../shared/i18n.js";
import { borrowKey, loadKey } from "../shared/keys.js";
import { prefer, preferences } from "../shared/storage.js";
import { explain } from "./errors.js";
import { askForKey } from "./key.js";
import { loadTools } from "./tools.js";

/** What the server can be asked with: its models, and a key where it wants one. */
export class Access {
  /**
   * @param {HTMLSelectElement} select
   * @param {HTMLSelectElement} second of the model to compare with
   * @param {(text: string) => void} notice
   * @param {() => void} loaded whenever there are models
   */
  constructor(select, second, notice, loaded) {
    this.loaded = loaded;
    this.select = select;
    this.second = second;
    this.notice = notice;
  }

  /** Offer the server's models; where that fails, say why and ask for what is missing. */
  async load() {
    try {
      const models = await listModels(loadKey("key"));
      prefer({ model: offerModels(this.select, models, preferences.model) });
      const second = offerModels(this.second, models, preferences.second || partnerOf(preferences.model, models));
      if (preferences.second) prefer({ second });
      this.notice("");
      await loadTools(loadKey("key"));
      this.loaded();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      const tried = loadKey("key") !== "";
      if (error.status !== 401) this.notice(explain(error));
      else if (!tried && (await borrowKey("key"))) await this.load();
      else this.refused(tried);
    }
  }

  /**
   * Asks again for the models when the first attempt failed.
   * @returns {Promise<boolean>} whether there is a model
   */
  async known() {
    if (!this.select.value) await this.load();
    return this.select.value !== "";
  }

  /**
   * The server wants a key.
   * @param {boolean} [tried] whether there was one, which it refused
   */
  refused(tried = loadKey("key") !== "") {
    this.notice(t("needsKey"));
    this.ask(tried);
  }

  /** @param {boolean} [refused] whether the key that there is was refused just now */
  ask(refused = false) {
    askForKey(refused, () => this.load());
  }
}

/** What a model is compared with unless something else is said: what was tuned from it, or another. */
function partnerOf(id, models) {
  const others = models.filter((model) => model.id !== id);
  return (others.find(({ parent }) => parent === id) ?? others[0])?.id;
}

/**
 * Fill `select` with `models`, adapters and aliases grouped by what they were tuned from.
 * @param {HTMLSelectElement} select
 * @param {{id: string, parent?: ?string}[]} models
 * @param {string} wanted chosen when it is there; else the first
 * @returns {string} the chosen model's id
 */
export function offerModels(select, models, wanted) {
  const groups = Map.groupBy(models, ({ parent }) => parent ?? "");
  const option = ({ id }) => new Option(id, id);
  const bases = (groups.get("") ?? []).map(option);
  groups.delete("");
  const tuned = Array.from(groups, ([base, members]) => {
    const group = document.createElement("optgroup");
    group.label = t("adapters", { base });
    group.append(...members.map(option));
    return group;
  });
  select.replaceChildren(...bases, ...tuned);
  select.value = models.some(({ id }) => id === wanted) ? wanted : models[0].id;
  return select.value;
}
