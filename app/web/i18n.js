/** The page's words in English and Japanese. */

const WORDS = {
  en: {
    title: "Hagane chat",
    skip: "Skip to the message field",
    conversations: "Conversations",
    newChat: "New chat",
    untitled: "New conversation",
    rename: "Rename",
    renameLabel: "Name of the conversation",
    remove: "Delete",
    removeLabel: "Delete “{name}”? This cannot be undone.",
    exportJson: "Export JSON",
    showList: "Conversations",
    model: "Model",
    settings: "Settings",
    theme: "Switch between light and dark",
    log: "Messages",
    composer: "Message",
    placeholder: "Ask something",
    hint: "Enter sends, Shift+Enter starts a new line, Esc stops",
    send: "Send",
    stop: "Stop",
    you: "You",
    assistant: "Assistant",
    empty: "Everything you write stays between this browser and your server.",
    copy: "Copy",
    copied: "Copied",
    copyFailed: "Cannot copy here",
    code: "Code",
    table: "Table",
    retry: "Retry",
    edit: "Edit",
    editLabel: "Edit your message",
    saveAndSend: "Save and send",
    cancel: "Cancel",
    ok: "OK",
    save: "Save",
    system: "System prompt",
    systemHint: "For this conversation and new ones.",
    temperature: "Temperature",
    topP: "Top p",
    maxTokens: "Max tokens",
    seed: "Seed",
    modelDefault: "model's own",
    noLimit: "no limit",
    random: "random",
    apiKey: "API key",
    apiKeyHint: "Kept until this tab is closed.",
    writing: "The assistant is writing.",
    done: "Answer finished.",
    tokens: "{count} tokens",
    promptTokens: "{count} in the prompt",
    rate: "{rate} tokens/s",
    firstToken: "first after {seconds} s",
    stopped: "Stopped.",
    cutShort: "Cut short: the limit of tokens was reached.",
    errorTitle: "The server refused",
    lostTitle: "Connection lost",
    lost: "The server could not be reached, or it stopped in the middle of the answer.",
    wait: "Try again in {seconds} s.",
    requestId: "Request {id}",
    enterKey: "Enter an API key",
    storageFull: "The browser's storage is full: this conversation is not saved. Delete old ones.",
    language: "日本語",
  },
  ja: {
    title: "Hagane チャット",
    skip: "メッセージ欄へ移動",
    conversations: "会話",
    newChat: "新しい会話",
    untitled: "新しい会話",
    rename: "名前を変更",
    renameLabel: "会話の名前",
    remove: "削除",
    removeLabel: "「{name}」を削除しますか。元に戻せません。",
    exportJson: "JSON で書き出す",
    showList: "会話一覧",
    model: "モデル",
    settings: "設定",
    theme: "明るい表示と暗い表示を切り替える",
    log: "メッセージ",
    composer: "メッセージ",
    placeholder: "何でも聞いてください",
    hint: "Enter で送信、Shift+Enter で改行、Esc で停止",
    send: "送信",
    stop: "停止",
    you: "あなた",
    assistant: "アシスタント",
    empty: "書いた内容は、このブラウザとあなたのサーバーの外には出ません。",
    copy: "コピー",
    copied: "コピーしました",
    copyFailed: "ここではコピーできません",
    code: "コード",
    table: "表",
    retry: "再試行",
    edit: "編集",
    editLabel: "メッセージを編集",
    saveAndSend: "保存して送信",
    cancel: "キャンセル",
    ok: "OK",
    save: "保存",
    system: "システムプロンプト",
    systemHint: "この会話と新しい会話に使われます。",
    temperature: "温度",
    topP: "Top p",
    maxTokens: "最大生成トークン数",
    seed: "シード",
    modelDefault: "モデルの既定値",
    noLimit: "制限なし",
    random: "毎回変わる",
    apiKey: "API キー",
    apiKeyHint: "このタブを閉じるまで保持されます。",
    writing: "アシスタントが書いています。",
    done: "回答が終わりました。",
    tokens: "{count} トークン",
    promptTokens: "プロンプト {count}",
    rate: "毎秒 {rate} トークン",
    firstToken: "最初まで {seconds} 秒",
    stopped: "停止しました。",
    cutShort: "トークン数の上限に達したため、途中で終わりました。",
    errorTitle: "サーバーに拒否されました",
    lostTitle: "接続が切れました",
    lost: "サーバーに接続できないか、回答の途中で切断されました。",
    wait: "{seconds} 秒後にもう一度お試しください。",
    requestId: "リクエスト {id}",
    enterKey: "API キーを入力",
    storageFull: "ブラウザの保存領域がいっぱいで、この会話は保存されません。古い会話を削除してください。",
    language: "English",
  },
};

let words = WORDS.en;

/**
 * The language to begin with: the one chosen before, else the browser's.
 * @param {?string} chosen
 * @returns {"en" | "ja"}
 */
export function firstLanguage(chosen) {
  if (chosen in WORDS) return chosen;
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
 * @param {"en" | "ja"} language
 */
export function speak(language) {
  words = WORDS[language];
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
