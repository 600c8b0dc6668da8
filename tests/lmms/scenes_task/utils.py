"""Functions of the task `scenes_local`, as lmms-eval calls them."""


def doc_to_visual(doc):
    return [doc["image"]]


def process_results(doc, results):
    def normalize(text):
        return text.strip().rstrip(".").lower()

    score = float(normalize(results[0]) == normalize(doc["answer"]))
    return {"exact": {"score": score, "image_id": doc["image_id"]}}


def aggregate(items):
    return sum(item["score"] for item in items) / len(items)
