"""Words that the generated conversations and stories are made of: (English, Japanese)."""

FOODS = [("rice", "ご飯"), ("bread", "パン"), ("curry", "カレー"), ("soup", "スープ"), ("cake", "ケーキ"), ("ice cream", "アイスクリーム"),
         ("noodles", "うどん"), ("sushi", "寿司"), ("eggs", "卵"), ("fish", "魚"), ("salad", "サラダ"), ("pizza", "ピザ"), ("chocolate", "チョコレート"),
         ("apples", "りんご"), ("oranges", "みかん"), ("strawberries", "いちご"), ("bananas", "バナナ"), ("ramen", "ラーメン"), ("tofu", "豆腐"), ("cookies", "クッキー")]
ANIMALS = [("dog", "犬"), ("cat", "猫"), ("rabbit", "うさぎ"), ("bear", "くま"), ("fox", "きつね"), ("bird", "小鳥"), ("turtle", "かめ"), ("frog", "かえる"),
           ("mouse", "ねずみ"), ("elephant", "ぞう"), ("monkey", "さる"), ("horse", "馬"), ("squirrel", "りす"), ("duck", "あひる"), ("sheep", "ひつじ"), ("pig", "ぶた"),
           ("owl", "ふくろう"), ("whale", "くじら"), ("penguin", "ペンギン"), ("panda", "パンダ")]
HOBBIES = [("reading books", "本を読むこと"), ("playing soccer", "サッカーをすること"), ("listening to music", "音楽を聞くこと"), ("drawing pictures", "絵を描くこと"),
           ("swimming", "泳ぐこと"), ("cooking", "料理をすること"), ("singing", "歌うこと"), ("dancing", "踊ること"), ("taking photos", "写真を撮ること"), ("playing the piano", "ピアノを弾くこと"),
           ("watching movies", "映画を見ること"), ("playing games", "ゲームをすること"), ("walking", "散歩をすること"), ("gardening", "花を育てること"), ("fishing", "釣りをすること"),
           ("playing baseball", "野球をすること"), ("traveling", "旅行をすること"), ("climbing mountains", "山に登ること")]
PLACES = [("the park", "公園"), ("the sea", "海"), ("the mountains", "山"), ("the library", "図書館"), ("the zoo", "動物園"), ("school", "学校"), ("the town", "町"),
          ("the museum", "美術館"), ("the river", "川"), ("the market", "市場"), ("the forest", "森"), ("the station", "駅"), ("the garden", "庭"), ("the lake", "湖")]
NAMES = [("Max", "マックス"), ("Lily", "リリー"), ("Tom", "トム"), ("Anna", "アンナ"), ("Ken", "けん"), ("Yuki", "ゆき"), ("Hana", "はな"), ("Taro", "たろう"), ("Mia", "ミア"), ("Leo", "レオ"),
         ("Sora", "そら"), ("Momo", "もも"), ("Ben", "ベン"), ("Emma", "エマ"), ("Koko", "ココ"), ("Rin", "りん"), ("Sam", "サム"), ("Aki", "あき"), ("Nana", "なな"), ("Hiro", "ひろ"),
         ("Zoe", "ゾーイ"), ("Kai", "かい"), ("Ruby", "ルビー"), ("Mei", "めい"), ("Oscar", "オスカー"), ("Sakura", "さくら"), ("Toby", "トビー"), ("Coco", "ココア"), ("Pip", "ピップ"), ("Luna", "ルナ")]
THINGS = [("a red ball", "赤いボール"), ("a little bell", "小さな鈴"), ("a blue hat", "青い帽子"), ("an old key", "古い鍵"), ("a golden leaf", "金色の葉っぱ"), ("a shiny stone", "光る石"),
          ("a warm scarf", "あたたかいマフラー"), ("a picture book", "絵本"), ("a small boat", "小さな船"), ("a paper star", "紙の星"), ("a wooden box", "木の箱"), ("a yellow kite", "黄色いたこ")]
COLORS = [("red", "赤"), ("blue", "青"), ("green", "緑"), ("yellow", "黄色"), ("white", "白"), ("black", "黒"), ("pink", "ピンク"), ("orange", "オレンジ色"), ("purple", "紫")]
COLORED = [("the sky", "空", "blue", "青"), ("grass", "草", "green", "緑"), ("snow", "雪", "white", "白"), ("a banana", "バナナ", "yellow", "黄色"), ("a strawberry", "いちご", "red", "赤"),
           ("a lemon", "レモン", "yellow", "黄色"), ("night", "夜の空", "black", "黒"), ("a tomato", "トマト", "red", "赤"), ("milk", "牛乳", "white", "白"), ("a leaf", "葉っぱ", "green", "緑"),
           ("a carrot", "にんじん", "orange", "オレンジ色"), ("coal", "炭", "black", "黒"), ("the sea", "海", "blue", "青"), ("a crow", "からす", "black", "黒"), ("a cherry blossom", "桜の花", "pink", "ピンク")]
OPPOSITES = [("big", "small", "大きい", "小さい"), ("hot", "cold", "暑い", "寒い"), ("long", "short", "長い", "短い"), ("new", "old", "新しい", "古い"), ("fast", "slow", "速い", "遅い"), ("high", "low", "高い", "低い"),
             ("light", "heavy", "軽い", "重い"), ("bright", "dark", "明るい", "暗い"), ("strong", "weak", "強い", "弱い"), ("near", "far", "近い", "遠い"), ("many", "few", "多い", "少ない"), ("wide", "narrow", "広い", "狭い")]
SOUNDS = [("dog", "woof", "犬", "ワンワン"), ("cat", "meow", "猫", "ニャー"), ("cow", "moo", "牛", "モー"), ("duck", "quack", "あひる", "ガーガー"), ("frog", "ribbit", "かえる", "ケロケロ"), ("sheep", "baa", "ひつじ", "メー"),
          ("pig", "oink", "ぶた", "ブーブー"), ("mouse", "squeak", "ねずみ", "チューチュー"), ("horse", "neigh", "馬", "ヒヒーン"), ("crow", "caw", "からす", "カーカー")]
CAPITALS = [("Japan", "Tokyo", "日本", "東京"), ("France", "Paris", "フランス", "パリ"), ("England", "London", "イギリス", "ロンドン"), ("Italy", "Rome", "イタリア", "ローマ"), ("Spain", "Madrid", "スペイン", "マドリード"),
            ("Germany", "Berlin", "ドイツ", "ベルリン"), ("China", "Beijing", "中国", "北京"), ("Korea", "Seoul", "韓国", "ソウル"), ("Egypt", "Cairo", "エジプト", "カイロ"), ("Canada", "Ottawa", "カナダ", "オタワ"),
            ("Australia", "Canberra", "オーストラリア", "キャンベラ"), ("Thailand", "Bangkok", "タイ", "バンコク"), ("Russia", "Moscow", "ロシア", "モスクワ"), ("Greece", "Athens", "ギリシャ", "アテネ"), ("Brazil", "Brasilia", "ブラジル", "ブラジリア"),
            ("India", "New Delhi", "インド", "ニューデリー"), ("Vietnam", "Hanoi", "ベトナム", "ハノイ"), ("Norway", "Oslo", "ノルウェー", "オスロ"), ("the United States", "Washington", "アメリカ", "ワシントン")]
USES = [("an umbrella", "keep dry in the rain", "傘", "雨の日に濡れないようにする"), ("a pencil", "write and draw", "鉛筆", "字や絵をかく"), ("a clock", "know the time", "時計", "時間を知る"), ("scissors", "cut paper", "はさみ", "紙を切る"),
        ("a bed", "sleep", "ベッド", "眠る"), ("a spoon", "eat soup", "スプーン", "スープを飲む"), ("a key", "open a door", "鍵", "ドアを開ける"), ("glasses", "see better", "眼鏡", "よく見えるようにする"), ("a map", "find the way", "地図", "道を探す"),
        ("a camera", "take photos", "カメラ", "写真を撮る"), ("a phone", "talk with people far away", "電話", "遠くの人と話す"), ("soap", "wash our hands", "石けん", "手を洗う"), ("a bag", "carry things", "かばん", "物を運ぶ"), ("a lamp", "have light at night", "ランプ", "夜に明るくする")]
KINDS = {"fruits": ("果物", ["apples", "bananas", "oranges", "grapes", "peaches", "melons"], ["りんご", "バナナ", "みかん", "ぶどう", "桃", "メロン"]),
         "animals": ("動物", ["dogs", "cats", "rabbits", "bears", "horses", "monkeys"], ["犬", "猫", "うさぎ", "くま", "馬", "さる"]),
         "colors": ("色", ["red", "blue", "green", "yellow", "white", "black"], ["赤", "青", "緑", "黄色", "白", "黒"]),
         "vegetables": ("野菜", ["carrots", "tomatoes", "onions", "potatoes", "cabbages", "cucumbers"], ["にんじん", "トマト", "玉ねぎ", "じゃがいも", "キャベツ", "きゅうり"]),
         "sports": ("スポーツ", ["soccer", "baseball", "tennis", "swimming", "basketball", "skiing"], ["サッカー", "野球", "テニス", "水泳", "バスケットボール", "スキー"]),
         "drinks": ("飲み物", ["water", "milk", "tea", "coffee", "juice", "cocoa"], ["水", "牛乳", "お茶", "コーヒー", "ジュース", "ココア"])}
# (weather, remark) in both languages; the Japanese begins as 「今日は天気が良いので、」 does.
SUNNY_PLANS = ["公園へ散歩に行きました。", "洗濯物がよく乾きます。", "友達と外で遊びます。", "お弁当を持って出かけましょう。", "海まで自転車で行きました。", "庭で花に水をやりました。", "家族と山に登りました。", "窓を開けて部屋を掃除しました。",
               "犬と一緒に川のそばを歩きました。", "外でお昼ご飯を食べました。", "公園で本を読みました。", "布団を干しました。", "子供たちは外で元気に遊んでいます。", "写真を撮りに出かけました。", "歩いて学校へ行きました。"]
SUNNY_AFTER = ["風が気持ちよかったです。", "空がとても青かったです。", "花がきれいに咲いていました。", "とても楽しい一日でした。", "鳥の声が聞こえました。", "みんな笑顔でした。", "夕方には家に帰りました。", "明日も晴れるといいです。", "帰りにアイスクリームを食べました。", "少し疲れましたが、楽しかったです。"]
RAINY_PLANS = ["家で本を読みました。", "傘を持って出かけました。", "部屋で音楽を聞きました。", "家でゲームをしました。", "友達と電話で話しました。", "台所でケーキを作りました。", "一日中家にいました。", "映画を見ました。"]
COLD_PLANS = ["あたたかいお茶を飲みました。", "厚いコートを着ました。", "鍋料理を食べました。", "マフラーをして出かけました。", "早く家に帰りました。", "ストーブの前で休みました。"]
HOT_PLANS = ["プールで泳ぎました。", "冷たい水をたくさん飲みました。", "アイスクリームを食べました。", "木の下で休みました。", "帽子をかぶって出かけました。", "海へ行きました。"]

