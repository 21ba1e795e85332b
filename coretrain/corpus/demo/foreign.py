# Characters that look like others are meant here.
# ruff: noqa: RUF001
"""Short sentences in languages other than English, written for the demo: enough to know a language by."""

from __future__ import annotations

SENTENCES: dict[str, tuple[str, ...]] = {
    "de": (
        "Am Morgen liegt noch Nebel über dem Fluss, und die Fähre fährt erst um acht.",
        "Meine Großmutter bewahrte die Äpfel im Keller auf, in Kisten aus hellem Holz.",
        "Wer das Fenster öffnet, hört die Straßenbahn und die Kinder im Hof.",
        "Der Bäcker an der Ecke verkauft seit dreißig Jahren dasselbe dunkle Brot.",
        "Im Winter wird es hier früh dunkel, deshalb brennen die Laternen schon am Nachmittag.",
        "Sie schrieb ihm einen langen Brief, schickte ihn aber niemals ab.",  # codespell:ignore
        "Die Brücke wurde nach dem Hochwasser neu gebaut und ist jetzt etwas höher.",  # codespell:ignore
        "Ohne gutes Werkzeug dauert die Arbeit doppelt so lange und macht keine Freude.",
        "Auf dem Markt gibt es heute Kürbisse, Zwiebeln und frischen Käse aus dem Dorf.",
        "Der Lehrer erklärte die Aufgabe zweimal, und trotzdem hatten viele noch Fragen.",
    ),
    "fr": (
        "Le matin, la boulangère ouvre sa porte avant que le soleil ne soit levé.",
        "Mon frère a réparé le vieux vélo de notre père avec des pièces trouvées au grenier.",
        "Il pleut depuis trois jours et la rivière commence à déborder près du moulin.",
        "Elle a posé la lettre sur la table, puis elle est sortie sans dire un mot.",  # codespell:ignore
        "Les élèves préfèrent travailler dehors quand il fait beau au mois de mai.",
        "Dans ce village, tout le monde connaît l'histoire du clocher penché.",
        "Nous avons marché jusqu'à la plage pour voir les bateaux rentrer au port.",
        "Le médecin lui a conseillé de dormir davantage et de manger moins de sucre.",  # codespell:ignore
        "Cette recette demande peu d'ingrédients, mais beaucoup de patience.",
        "À la fin du concert, le public est resté silencieux pendant quelques secondes.",
    ),
    "es": (
        "Mi abuelo plantó un limonero detrás de la casa el año en que nació mi madre.",
        "Los domingos vamos al mercado a comprar pescado, pan y un ramo de flores.",
        "El tren llegó con dos horas de retraso porque había nieve en las montañas.",  # codespell:ignore
        "Ella aprendió a tocar la guitarra escuchando discos viejos en su habitación.",
        "Cuando llueve mucho, el camino hacia el pueblo queda cubierto de barro.",
        "La profesora leyó el cuento en voz baja y los niños la escucharon sin moverse.",
        "En verano cenamos tarde, con las ventanas abiertas y el ruido de los grillos.",
        "El pescador vendió todo antes del mediodía y volvió contento a su barca.",
        "Nadie sabía quién había pintado aquella pared de color azul durante la noche.",
        "Guardamos las cartas en una caja de madera que huele todavía a canela.",
    ),
    "ru": (
        "Утром над рекой стоял туман, и паром ещё не ходил.",
        "Бабушка хранила яблоки в погребе, в ящиках из светлого дерева.",
        "Зимой здесь рано темнеет, поэтому фонари зажигают уже днём.",
        "Она написала ему длинное письмо, но так и не отправила его.",
        "На рынке сегодня продают тыквы, лук и свежий сыр из деревни.",
        "Учитель дважды объяснил задачу, однако вопросы всё равно остались.",
        "После наводнения мост построили заново, и теперь он немного выше.",
        "Без хорошего инструмента работа идёт вдвое дольше и не приносит радости.",
        "Дети бежали по двору и громко смеялись, пока не начался дождь.",
        "Старый часовщик чинил будильники в маленькой мастерской у вокзала.",
    ),
    "zh": (
        "早上河面上还有雾，渡船要到八点才开。",
        "祖母把苹果放在地窖里，装在浅色的木箱中。",
        "冬天这里天黑得很早，所以下午就点起了路灯。",
        "她给他写了一封很长的信，却一直没有寄出去。",
        "今天市场上有南瓜、洋葱和村里送来的新鲜奶酪。",
        "老师把题目讲了两遍，可是很多学生还是有问题。",
        "洪水过后，人们重新修了桥，现在它比以前高一些。",
        "没有好的工具，做事要花两倍的时间，也没有什么乐趣。",
        "孩子们在院子里跑来跑去，一直笑到下雨为止。",
        "车站旁边的小店里，一位老人正在修理旧钟表。",
    ),
    "ja": (
        "朝の川にはまだ霧がかかっていて、渡し船は八時まで出ません。",
        "祖母はりんごを地下の部屋に、明るい色の木箱に入れてしまっていました。",
        "冬になるとこのあたりは早く暗くなるので、午後にはもう街灯がつきます。",
        "彼女は彼に長い手紙を書きましたが、とうとう出しませんでした。",
        "今日の市場には、かぼちゃや玉ねぎ、村で作った新しいチーズが並んでいます。",
        "先生は問題を二度も説明しましたが、それでも質問は残りました。",
        "洪水のあとで橋は建て直され、今では前より少し高くなっています。",
        "よい道具がなければ、仕事には倍の時間がかかり、楽しくもありません。",
        "子どもたちは雨が降り出すまで、庭を走り回って笑っていました。",
        "駅のそばの小さな店で、年をとった職人が古い時計を直しています。",
    ),
}
"""By ISO 639-1 code."""
