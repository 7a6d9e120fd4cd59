/** The switches for light and dark and for the language, the same on every page. */

import { firstLanguage, speak } from "./i18n.js";
import { prefer, preferences } from "./storage.js";

const $ = (id) => document.getElementById(id);

/**
 * Make the page's switches work and put it into its first language.
 * @param {{en: object, ja: object}} vocabulary the page's words
 * @param {() => void} changed called after every change of the language, so also at once
 */
export function prepareAppearance(vocabulary, changed) {
  let language = firstLanguage(preferences.language);
  const apply = () => {
    speak(vocabulary, language);
    $("language").lang = language === "en" ? "ja" : "en";
    changed();
  };
  $("theme").addEventListener("click", switchTheme);
  $("language").addEventListener("click", () => {
    language = language === "en" ? "ja" : "en";
    prefer({ language });
    apply();
  });
  apply();
}

function switchTheme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const theme = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
  root.dataset.theme = theme;
  prefer({ theme });
}
