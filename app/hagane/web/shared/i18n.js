/** Speaking English and Japanese: the words that all pages share, and how a page is put into them. */

const COMMON = {
  en: {
    theme: "Switch between light and dark",
    language: "日本語",
    cancel: "Cancel",
    ok: "OK",
    save: "Save",
    remove: "Delete",
    lost: "The server could not be reached, or it stopped in the middle of the answer.",
    wait: "Try again in {seconds} s.",
    requestId: "Request {id}",
  },
  ja: {
    theme: "明るい表示と暗い表示を切り替える",
    language: "English",
    cancel: "キャンセル",
    ok: "OK",
    save: "保存",
    remove: "削除",
    lost: "サーバーに接続できないか、回答の途中で切断されました。",
    wait: "{seconds} 秒後にもう一度お試しください。",
    requestId: "リクエスト {id}",
  },
};

/** Words of the current language. */
let words = COMMON.en;

/**
 * The language to begin with: the one chosen before, else the browser's.
 * @param {?string} chosen
 * @returns {"en" | "ja"}
 */
export function firstLanguage(chosen) {
  if (chosen in COMMON) return chosen;
  return navigator.language.toLowerCase().startsWith("ja") ? "ja" : "en";
}

/**
 * One phrase in the current language, with `{name}` filled in from `values`.
 * @param {string} key
 * @param {Record<string, string | number>} [values]
 * @returns {string}
 */
export function t(key, values = {}) {
  return words[key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

/**
 * Put the whole page into `language`: texts by `data-i18n`, names of controls by
 * `data-i18n-label`, placeholders by `data-i18n-placeholder`.
 * @param {{en: object, ja: object}} vocabulary the page's own words
 * @param {"en" | "ja"} language
 */
export function speak(vocabulary, language) {
  words = { ...COMMON[language], ...vocabulary[language] };
  document.documentElement.lang = language;
  document.title = t("title");
  for (const node of document.querySelectorAll("[data-i18n]")) {
    node.textContent = t(node.dataset.i18n);
  }
  for (const node of document.querySelectorAll("[data-i18n-label]")) {
    node.setAttribute("aria-label", t(node.dataset.i18nLabel));
    node.title = t(node.dataset.i18nLabel);
  }
  for (const node of document.querySelectorAll("[data-i18n-placeholder]")) {
    node.placeholder = t(node.dataset.i18nPlaceholder);
  }
}
