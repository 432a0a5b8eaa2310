"""The page's policies, each in its module, tried alone in the browser that runs them."""

import ast

import pytest

from bestofn.judge.verdict import Rule
from bestofn.service.core.workers import PipelineCall
from bestofn.service.media.metadata import Story
from bestofn.service.media.reproduce import diffusers_call


@pytest.fixture(scope="module")
def module(browser, api):
    """Runs `expression` over the exports of a module, `m`, with `given`."""
    page = browser.new_page(base_url=api.url)
    page.goto("/page/style.css")  # the API's own answers forbid scripts

    def run(name, expression, given=None):
        return page.evaluate(f"async (given) => {{ const m = await import('/page/{name}.js'); {expression} }}", given)

    yield run
    page.close()


def test_a_stream_reads_the_same_however_it_is_cut(module):
    text = ': hello\r\nid: 7\r\nevent: candidate\r\ndata: {"a":\r\ndata: 1}\r\n\r\nretry: 9\ndata:x\n\n'
    text += "event: end\rdata: \r\r"
    read = """
        const seen = [];
        for (let cut = 0; cut <= given.length; cut++) {
            const parser = new m.EventParser();
            const pieces = [given.slice(0, cut), given.slice(cut), "\\n"];
            seen.push(JSON.stringify(pieces.flatMap((piece) => parser.push(piece))));
        }
        return [...new Set(seen)].map(JSON.parse);
    """
    assert module("stream", read, text) == [
        [
            {"type": "candidate", "data": '{"a":\n1}', "id": "7"},
            {"type": "message", "data": "x", "id": "7"},
            {"type": "end", "data": "", "id": "7"},
        ]
    ]


def test_a_broken_stream_goes_on_after_the_last_event_and_gives_up_on_a_final_refusal(module):
    follow = """
        const asked = [], pauses = [];
        const whole = "id: 1\\ndata: a\\n\\nid: 2\\ndata: b\\n\\n";
        const pieces = [whole + "id: 3\\nda", null, "id: 3\\ndata: c\\n\\n", { passing: false }];
        const open = async (last) => {
            asked.push(last);
            const piece = pieces.shift();
            if (piece === null) throw { passing: true };
            if (piece.passing === false) throw piece;
            return new Response(piece);
        };
        const seen = [];
        try {
            const { signal } = new AbortController();
            const pause = async (milliseconds) => pauses.push(milliseconds);
            for await (const event of m.follow(open, { signal, last: new Set(), pause })) seen.push(event.data);
        } catch (error) { seen.push(error.passing); }
        return { asked, seen, growing: pauses[0] < pauses[1] };
    """
    assert module("stream", follow) == {"asked": [None, "2", "2", "3"], "seen": ["a", "b", "c", False], "growing": True}


def test_seeds_keep_every_digit(module):
    text = r'{"seed":9223372036854775807,"prompt":"\"seed\":12","more":[{"seed": 5}]}'
    kept = module("api", "const read = m.readJson(given); return [read, m.writeJson(read)]", text)
    assert kept[0] == {"seed": "9223372036854775807", "prompt": '"seed":12', "more": [{"seed": "5"}]}
    assert kept[1] == text.replace(" ", "")


PIPELINES = {
    None: None,
    "guidance": PipelineCall(
        name="QwenImagePipeline",
        dtype="bfloat16",
        guidance="true_cfg_scale",
        reads_negative=True,
        arguments={"max_sequence_length": 64, "use_resolution_binning": False},
    ),
    "none": PipelineCall(name="OtherPipeline", dtype="float32", guidance=None, reads_negative=False, arguments={}),
}


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES.keys())
@pytest.mark.parametrize(
    ("name", "revision", "steps"),
    [
        ("someone/model", "a" * 40, 20),
        ("someone/Sprint", "b" * 40, 4),
        ('my "model"', "c#\n1", 12),
        ("someone/model+lora:ink+lora:paint", f"{'a' * 40}+lora-01234567+lora-89abcdef+fp8-drafts", 20),
    ],
    ids=["hub", "sprint", "folder", "loras"],
)
@pytest.mark.parametrize("prompt", ["a red star", 'a "red"\n\\star\t{x}', "eine Brücke 橋 \U0001f309 \u2028 \x7f"])
def test_diffusers_call_of_the_page_is_that_of_inspect(module, prompt, name, revision, steps, pipeline):
    said = {
        "negative_prompt": prompt if steps == 20 else "",
        "height": 64,
        "width": 32,
        "num_inference_steps": steps,
        "guidance_scale": 4,
    }
    model = {"name": name, "revision": revision}
    verdict = {"answer": "yes", "yes_logit": 1.0, "no_logit": 0.0, "p_yes": 0.7}
    story = Story(
        prompt=prompt,
        **said,
        seed=2**63 - 1,
        rule=Rule.MARGIN,
        verdict=verdict,
        model=model,
        pipeline=pipeline,
        judge=model,
        software="",
    )
    for layers in (None, [0, 3]):
        job = {"prompt": prompt, "parameters": said | {"layers": layers}, "model": model}
        given = {"job": job, "pipeline": pipeline and pipeline.model_dump()}
        call = "return m.diffusersCall(given.job, '9223372036854775807', given.pipeline)"
        source = module("diffusers", call, given)
        told = story.model_copy(update={"layers": layers})
        assert ast.dump(ast.parse(source)) == ast.dump(ast.parse(diffusers_call(told)))


def test_every_tree_has_all_entrants_and_fits(module):
    grow = """
        return [2, 3, 4, 5, 7, 8, 17, 31, 32].flatMap((count) => [330, 700, 1080].map((width) => {
            const sizes = m.entrants(count);
            const { nodes, lines, height } = m.layout(sizes, 0, width);
            const inside = nodes.every(({ x, y, side }) =>
                x - side / 2 >= 0 && x + side / 2 <= width && y - side / 2 >= -1 && y + side / 2 <= height + 1);
            return [count, nodes.length === sizes.reduce((a, b) => a + b), lines.every(({ to }) => to), inside];
        }));
    """
    wrong = [case for case in module("bracket", grow) if case[1:] != [True, True, True]]
    assert not wrong


def test_job_end_has_plain_words(module):
    bill = {"tflops": 1234.5, "seconds": {"denoise": 100.0, "judge": 25.0}, "discarded_forwards": 2}
    tell = """
        const { usage, drawn, ...job } = given;
        return m.cost({ ...job, usage, status: "succeeded", candidates: new Set(Array(drawn).keys()) });
    """

    def told(drawn, stopped, confidence=None, calibrated=None):
        job = {"plan": None, "stopped": stopped, "confidence": confidence, "calibrated": calibrated}
        pairs = module("cost", tell, {**job, "usage": bill, "drawn": drawn})
        return {term: said.replace("\xa0", " ") for term, said in pairs}

    used = "1,230 TFLOP, 2 min of device time, and 2 forwards that ran ahead for nothing"
    assert told(1, None) == {"Used": used, "Ended": "The candidate is judged"}
    assert told(8, "confident", 0.973, True)["Ended"] == "After 8 candidates: enough, 97.3 % sure of the winner"
    assert told(64, "patience", 0.1, True)["Ended"] == "After 64 candidates: none was right, more would hardly help"
    assert told(4, "deadline")["Ended"] == "After 4 candidates: out of time"
    assert told(9, None, 0.5, False)["Ended"].endswith("judged, 50 % sure of the winner by the judge's own word")
