"""Japanese small talk, simple facts and sums: every function makes a few turns."""

from __future__ import annotations

from random import Random

from stories import story
from words import (
    ANIMALS,
    CAPITALS,
    COLD_PLANS,
    COLORED,
    FOODS,
    HOBBIES,
    KINDS,
    NAMES,
    OPPOSITES,
    PLACES,
    SOUNDS,
    SUNNY_PLANS,
    USES,
)

Turn = tuple[str, str]
FEELINGS = [
    ("うれしい", "それはよかったですね。何があったのですか。"),
    ("悲しい", "それはつらいですね。よかったら話してください。"),
    ("楽しい", "それはよかったです。何をしているのですか。"),
    ("さびしい", "私がここにいます。少しお話ししましょう。"),
    ("眠い", "今日は早く寝たほうがいいですね。"),
    ("忙しい", "大変ですね。無理をしないでください。"),
    ("怖い", "大丈夫ですよ。何が怖いのですか。"),
    ("頭が痛い", "お大事に。ゆっくり休んでください。"),
    ("おなかが痛い", "お大事に。あたたかくして休んでください。"),
]
STATES = [
    ("疲れました。", "お疲れさまでした。ゆっくり休んでください。"),
    ("今日は疲れました。", "お疲れさまでした。ゆっくり休んでください。"),
    ("おなかがすきました。", "何か食べたいものはありますか。"),
    ("退屈です。", "では、お話をしましょうか。"),
    ("元気です。", "それはよかったです。"),
    ("はい、元気です。", "それはよかったです。今日は何をしますか。"),
    ("風邪をひきました。", "お大事に。あたたかくして休んでください。"),
    ("試験に合格しました。", "おめでとうございます！よく頑張りましたね。"),
    ("明日は試験です。", "頑張ってください。応援しています。"),
    ("今日は誕生日です。", "お誕生日おめでとうございます！"),
    ("友達とけんかしました。", "それはつらいですね。早く仲直りできるといいですね。"),
    ("道に迷いました。", "近くの人に聞いてみましょう。"),
]
WEATHER = [
    ("今日は天気がいいですね。", "そうですね。散歩に行きたくなりますね。"),
    ("今日は天気が良いですね。", "そうですね。散歩に行きたくなりますね。"),
    ("いい天気ですね。", "本当にいい天気ですね。どこかに出かけますか。"),
    ("今日は雨です。", "出かけるときは傘を持って行ってください。"),
    ("雨が降っています。", "出かけるときは傘を持って行ってください。"),
    ("今日は寒いです。", "あたたかい服を着てくださいね。"),
    ("寒いですね。", "そうですね。あたたかいお茶が飲みたくなりますね。"),
    ("今日は暑いです。", "水をたくさん飲んでくださいね。"),
    ("暑いですね。", "そうですね。冷たいものが食べたくなりますね。"),
    ("雪が降っています。", "きれいでしょうね。雪だるまが作れますね。"),
    ("風が強いです。", "外に出るときは気をつけてください。"),
    ("桜が咲きました。", "きれいでしょうね。お花見に行きますか。"),
]


def greeting(rng: Random) -> Turn:
    return rng.choice([
        ("こんにちは。", "こんにちは。お元気ですか。"), ("こんにちは", "こんにちは。お元気ですか。"), ("こんにちは！", "こんにちは！今日は何を話しましょうか。"), ("おはようございます。", "おはようございます。よく眠れましたか。"), ("おはよう", "おはようございます。よく眠れましたか。"), ("おはよう。", "おはようございます。今日もいい一日になりますように。"),
        ("こんばんは。", "こんばんは。今日はどんな一日でしたか。"), ("こんばんは", "こんばんは。今日はどんな一日でしたか。"), ("はじめまして。", "はじめまして。よろしくお願いします。"), ("お元気ですか。", "はい、元気です。あなたはいかがですか。"), ("元気ですか。", "はい、元気です。あなたはいかがですか。"), ("元気？", "はい、元気です。あなたはどうですか。"), ("やあ", "こんにちは。何かお手伝いしましょうか。"), ("よろしくお願いします。", "こちらこそ、よろしくお願いします。"), ("ただいま。", "おかえりなさい。今日はどうでしたか。"),
    ])  # fmt: skip


def farewell(rng: Random) -> Turn:
    return rng.choice([
        ("ありがとう。", "どういたしまして。"), ("ありがとう", "どういたしまして。"), ("ありがとうございます。", "どういたしまして。お役に立ててうれしいです。"), ("さようなら。", "さようなら。また話しましょう。"), ("さようなら", "さようなら。また話しましょう。"), ("おやすみなさい。", "おやすみなさい。いい夢を見てください。"), ("おやすみ。", "おやすみなさい。ゆっくり休んでください。"),
        ("また明日。", "はい、また明日お話ししましょう。"), ("そろそろ行きます。", "わかりました。気をつけて行ってください。"), ("行ってきます。", "行ってらっしゃい。気をつけて。"), ("助かりました。", "それはよかったです。"),
    ])  # fmt: skip


def hello(rng: Random) -> list[Turn]:
    return [greeting(rng)]


def bye(rng: Random) -> list[Turn]:
    return [farewell(rng)]


def food(rng: Random) -> list[Turn]:
    f = rng.choice(FOODS)[1]
    turns = [
        rng.choice(
            [
                (f"{f}が好きです。", f"{f}はおいしいですね。よく食べますか。"),
                (f"私は{f}が好きです。", f"{f}はおいしいですね。よく食べますか。"),
                (f"今日は{f}を食べました。", f"いいですね。{f}はおいしかったですか。"),
                (
                    f"{f}は好きですか。",
                    f"私は食べられませんが、{f}が好きな人は多いです。あなたは好きですか。",
                ),
                ("晩ご飯は何がいいですか。", f"{f}はどうですか。"),
                ("今日は何を食べようかな。", f"{f}はどうですか。"),
                ("おすすめの食べ物は何ですか。", f"{f}はどうですか。"),
                (f"{f}が食べたいです。", f"いいですね。{f}を食べると元気が出ますね。"),
            ]
        )
    ]
    if rng.random() < 0.4:
        turns.append(
            rng.choice(
                [
                    ("はい、好きです。", "それはよかったです。また食べられるといいですね。"),
                    ("はい。", "そうですか。それはいいですね。"),
                    ("とてもおいしかったです。", "それはよかったです。"),
                    ("あまり食べません。", "そうですか。どんな食べ物が好きですか。"),
                ]
            )
        )
    return turns


def hobby(rng: Random) -> list[Turn]:
    h = rng.choice(HOBBIES)[1]
    turns = [
        rng.choice(
            [
                (f"{h}が好きです。", f"{h}は楽しいですね。よくするのですか。"),
                (f"趣味は{h}です。", f"{h}はいい趣味ですね。いつ始めたのですか。"),
                (f"私の趣味は{h}です。", f"{h}はいい趣味ですね。いつ始めたのですか。"),
                ("何かいい趣味はありますか。", f"{h}はどうですか。楽しいですよ。"),
                ("週末は何をしたらいいですか。", f"{h}はどうですか。"),
                ("暇です。何をしましょうか。", f"{h}はどうですか。"),
            ]
        )
    ]
    if rng.random() < 0.4:
        turns.append(
            rng.choice(
                [
                    ("毎日します。", "毎日ですか。それはすごいですね。"),
                    ("毎週します。", "いいですね。楽しい週末ですね。"),
                    ("去年始めました。", "そうですか。これからも楽しんでください。"),
                    ("はい、よくします。", "それはいいですね。"),
                ]
            )
        )
    return turns


def place(rng: Random) -> list[Turn]:
    p, n = rng.choice(PLACES)[1], rng.choice(["家族", "友達", "母", "父", "弟", "妹", "犬"])
    return [
        rng.choice(
            [
                (f"{n}と{p}へ行きました。", f"それは楽しそうですね。{p}で何をしましたか。"),
                (f"昨日、{p}に行きました。", f"いいですね。{p}で何をしましたか。"),
                (f"{p}に行きたいです。", f"{p}はいいところですね。誰と行きますか。"),
                (f"明日は{p}へ行きます。", f"いいですね。{p}で楽しい時間を過ごしてください。"),
                ("今日はどこへ行こうかな。", f"{p}はどうですか。"),
                ("週末はどこへ行けばいいですか。", f"{p}はどうですか。"),
            ]
        )
    ] + (
        [("一緒に遊んで、お昼ご飯を食べました。", "楽しい一日でしたね。")]
        if rng.random() < 0.2
        else []
    )


def feeling(rng: Random) -> list[Turn]:
    if rng.random() < 0.5:
        return [rng.choice(STATES)]
    f, answer = rng.choice(FEELINGS)
    turns = [
        (
            rng.choice([f"{f}です。", f"今日は{f}です。", f"とても{f}です。", f"私は{f}です。"]),
            answer,
        )
    ]
    if rng.random() < 0.3:
        turns.append(
            (
                rng.choice(["いろいろありました。", "よくわかりません。", "友達と話しました。"]),
                rng.choice(
                    [
                        "そうですか。話してくれてありがとうございます。",
                        "そうだったのですね。明日はいい日になりますように。",
                    ]
                ),
            )
        )
    return turns


def weather(rng: Random) -> list[Turn]:
    if rng.random() < 0.25:
        return [
            rng.choice(
                [
                    (
                        "今日は天気が良いので、何をしましょうか。",
                        "公園へ散歩に行くのはどうですか。",
                    ),
                    (
                        "「今日は天気が良いので、」の続きを書いてください。",
                        "今日は天気が良いので、" + rng.choice(SUNNY_PLANS),
                    ),
                    (
                        "「今日は寒いので、」の続きを書いてください。",
                        "今日は寒いので、" + rng.choice(COLD_PLANS),
                    ),
                ]
            )
        ]
    return [rng.choice(WEATHER)]


def animal(rng: Random) -> list[Turn]:
    a, n = rng.choice(ANIMALS)[1], rng.choice(NAMES)[1]
    return [
        rng.choice(
            [
                (f"{a}を飼っています。", f"いいですね。{a}の名前は何ですか。"),
                (f"{n}という{a}を飼っています。", f"{n}はすてきな名前ですね。"),
                (f"{a}が好きです。", f"{a}はかわいいですね。どうして好きなのですか。"),
                (f"{a}の名前は{n}です。", f"{n}はすてきな名前ですね。大きいですか、小さいですか。"),
                (f"{a}は好きですか。", f"はい、{a}はすてきな動物だと思います。"),
            ]
        )
    ]


def name(rng: Random) -> list[Turn]:
    n = rng.choice(NAMES)[1]
    turns = [
        (
            rng.choice(
                [
                    f"私の名前は{n}です。",
                    f"私は{n}です。",
                    f"{n}といいます。",
                    f"はじめまして、{n}です。",
                ]
            ),
            rng.choice([f"はじめまして、{n}さん。", f"{n}さん、よろしくお願いします。"]),
        )
    ]
    if rng.random() < 0.5:
        turns.append(
            (
                rng.choice(["私の名前は何ですか。", "私の名前を覚えていますか。"]),
                f"あなたの名前は{n}さんです。",
            )
        )
    return turns


def fact(rng: Random) -> list[Turn]:
    kind = rng.randrange(6)
    if kind == 0:
        _, thing, _, color = rng.choice(COLORED)
        return [
            (
                rng.choice([f"{thing}は何色ですか。", f"{thing}の色は何ですか。"]),
                f"{thing}は{color}です。"
                if color.endswith("色") or color == "ピンク"
                else f"{thing}は{color}色です。".replace("緑色色", "緑色"),
            )
        ]
    if kind == 1:
        *_, a, b = rng.choice(OPPOSITES)
        if rng.random() < 0.5:
            a, b = b, a
        return [
            (
                rng.choice([f"「{a}」の反対は何ですか。", f"{a}の反対の言葉は何ですか。"]),
                f"「{a}」の反対は「{b}」です。",
            )
        ]
    if kind == 2:
        *_, a, sound = rng.choice(SOUNDS)
        return [
            (
                rng.choice([f"{a}は何と鳴きますか。", f"{a}の鳴き声を教えてください。"]),
                f"{a}は「{sound}」と鳴きます。",
            )
        ]
    if kind == 3:
        *_, country, capital = rng.choice(CAPITALS)
        return [
            (
                rng.choice(
                    [f"{country}の首都はどこですか。", f"{country}の首都を教えてください。"]
                ),
                f"{country}の首都は{capital}です。",
            )
        ]
    if kind == 4:
        *_, thing, use = rng.choice(USES)
        return [
            (
                rng.choice([f"{thing}は何に使いますか。", f"{thing}は何のためにありますか。"]),
                f"{thing}は{use}ために使います。",
            )
        ]
    word, _, words = rng.choice(list(KINDS.values()))
    picked = rng.sample(words, 3)
    return [
        (
            rng.choice([f"{word}を三つ教えてください。", f"{word}を三つ言ってください。"]),
            f"{picked[0]}、{picked[1]}、{picked[2]}です。",
        )
    ]


def time(rng: Random) -> list[Turn]:
    days = ["月曜日", "火曜日", "水曜日", "木曜日", "金曜日", "土曜日", "日曜日"]
    d = rng.randrange(7)
    return [
        rng.choice(
            [
                (
                    f"{days[d]}の次の日は何曜日ですか。",
                    f"{days[d]}の次の日は{days[(d + 1) % 7]}です。",
                ),
                (f"{days[d]}の前の日は何曜日ですか。", f"{days[d]}の前の日は{days[d - 1]}です。"),
                ("一週間は何日ですか。", "一週間は七日です。"),
                ("一年は何か月ですか。", "一年は十二か月です。"),
                ("四つの季節は何ですか。", "春、夏、秋、冬です。"),
                ("寒い季節はいつですか。", "冬です。"),
                ("暑い季節はいつですか。", "夏です。"),
                ("桜はいつ咲きますか。", "桜は春に咲きます。"),
            ]
        )
    ]


def sums(rng: Random) -> list[Turn]:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    if rng.random() < 0.3:
        a, b = max(a, b), min(a, b)
        return [
            rng.choice(
                [
                    (f"{a}引く{b}はいくつですか。", f"{a}引く{b}は{a - b}です。"),
                    (f"{a}-{b}は？", f"{a}-{b}は{a - b}です。"),
                    (
                        f"りんごが{a}個あります。{b}個食べると、残りは何個ですか。",
                        f"残りは{a - b}個です。",
                    ),
                ]
            )
        ]
    return [
        rng.choice(
            [
                (f"{a}足す{b}はいくつですか。", f"{a}足す{b}は{a + b}です。"),
                (f"{a}+{b}は？", f"{a}+{b}は{a + b}です。"),
                (f"{a}+{b}はいくつですか。", f"{a}+{b}は{a + b}です。"),
            ]
        )
    ]


def tale(rng: Random) -> list[Turn]:
    a, n = rng.choice(ANIMALS)[1], rng.choice(NAMES)[1]
    asked, hero, who = rng.choice(
        [
            (f"{n}という{a}のお話をしてください。", a, n),
            (f"{a}のお話をしてください。", a, None),
            ("お話をしてください。", None, None),
            ("何かお話をして。", None, None),
            (f"{n}のお話をしてください。", None, n),
            (f"{n}という名前の{a}の物語を聞かせてください。", a, n),
            ("短いお話をしてください。", None, None),
        ]
    )
    return [(asked, story(rng, True, hero, who))]


def unknown(rng: Random) -> list[Turn]:
    return [
        (
            rng.choice(
                [
                    "明日の天気は何ですか。",
                    "今何時ですか。",
                    "昨日の試合はどちらが勝ちましたか。",
                    "今日のニュースは何ですか。",
                    "私は何歳ですか。",
                    "ここはどこですか。",
                    "今日は何曜日ですか。",
                ]
            ),
            rng.choice(
                [
                    "それはわかりません。私はとても小さなモデルです。",
                    "時計もインターネットもないので、わかりません。",
                ]
            ),
        )
    ]


TOPICS = [
    hello,
    bye,
    food,
    food,
    hobby,
    hobby,
    place,
    feeling,
    feeling,
    weather,
    weather,
    animal,
    name,
    fact,
    fact,
    fact,
    time,
    sums,
    tale,
    tale,
    tale,
    unknown,
]
