"""What is guaranteed, in a sentence and as a table in the order of NIST SP 800-226, and epsilon against steps."""

from __future__ import annotations

from appliance.events.logged import LoggedEvent
from appliance.jobs.plan import UnitKind
from appliance.report import charts
from appliance.report.blocks import Block, Chart, Paragraph, Section, Table, pairs, say, words
from appliance.report.evidence import Evidence
from appliance.report.figures import Figure, Sentence, fact, items, states

RELATION = {"add-or-remove-one": "adding or removing one unit"}


def odds(ending: LoggedEvent) -> Figure | None:
    """Cite the factor e^epsilon as the ledger states it, if it does."""
    return fact(ending, "/odds_bound") if states(ending, "/odds_bound") else None


def unit_words(evidence: Evidence) -> Sentence:
    """Put the unit of privacy in words."""
    reserved = evidence.reserved
    split = ("; plain text, split by ", fact(reserved, "/plan/split")) if states(reserved, "/plan/split") else ()
    if reserved.facts["plan"]["unit"] == UnitKind.RECORD:
        return say("one record (plain text, split by ", split[1], ")") if split else words("one record")
    most = fact(reserved, "/plan/max_records")
    return say("all records of one subject (at most ", most, " of them were kept", *split, ")")


def guarantee_sentence(evidence: Evidence) -> Sentence:
    """State mechanism, unit of privacy, neighbouring relation, epsilon, delta, what is released, against whom."""
    reserved, ending = evidence.reserved, evidence.settled
    if ending is None:
        return _no_guarantee(evidence)
    return say(
        "The adapter of this run was made by DP-SGD on LoRA parameters: ",
        *(fact(ending, "/attempts"), " Poisson-sampled steps with ", *_rate(ending)),
        *(", clip norm ", fact(reserved, "/plan/max_grad_norm"), " (", fact(reserved, "/plan/clipping")),
        *(") and Gaussian noise of multiplier ", fact(ending, "/noise_multiplier"), ". It is (epsilon = "),
        *(fact(ending, "/epsilon_charged"), ", delta = ", fact(ending, "/delta")),
        *(")-differentially private: adding or removing ", *unit_words(evidence)),
        " changes the probability of any outcome by at most a factor of e to the power epsilon, up to delta. "
        "This holds "
        "against anyone who is given the adapter and the plan of the run, whatever else they know and however they "
        "compute, and even if they saw every noised sum of the training.",
    )


def _rate(ending: LoggedEvent) -> Sentence:
    """State the sample rate; that of every phase of a curriculum is said by `_phases`."""
    if states(ending, "/phases"):
        return words("the sample rate of each phase")
    return say("sample rate ", fact(ending, "/sample_rate"))


def _phases(ending: LoggedEvent | None) -> list[Block]:
    """Say what each phase of a curriculum sampled; they followed each other in this order."""
    if ending is None or not states(ending, "/phases"):
        return []
    rows = tuple(
        tuple(say(fact(ending, f"{phase.pointer}/{key}")) for key in ("name", "attempts", "sample_rate"))
        for _, phase in items(ending, "/phases")
    )
    return [Table("Phases of the curriculum, in order", ("Phase", "Sampled steps", "Sample rate"), rows)]


def _no_guarantee(evidence: Evidence) -> Sentence:
    ending = evidence.ending
    if ending is None:
        return say(
            "The run has not been settled, so nothing has been released and there is no guarantee to state. Its whole "
            "reservation, epsilon ",
            *(fact(evidence.reserved, "/plan/epsilon"), ", stands charged to the dataset until it is settled."),
        )
    return say(
        "The run released nothing. Its ",
        *(fact(ending, "/attempts"), " sampled steps were charged all the same: epsilon "),
        *(fact(ending, "/epsilon_charged"), " at delta ", fact(ending, "/delta"), "."),
    )


def guarantee_section(evidence: Evidence) -> Section:
    """State the guarantee, in words and as a table."""
    return Section(
        "guarantee",
        "The guarantee",
        (
            Paragraph(guarantee_sentence(evidence)),
            *_phases(evidence.settled),
            *_meaning(evidence),
            _nist_table(evidence),
        ),
    )


def _meaning(evidence: Evidence) -> list[Block]:
    ending = evidence.settled
    bound = odds(ending) if ending else None
    if bound is None:
        return []
    return [
        Paragraph(
            say(
                "In plain words: somebody who wants to know whether one given unit was in the data, and who knows "
                "everything else, can multiply their odds by at most ",
                *(
                    bound,
                    ", up to delta. A factor near one means that they learn next to nothing; the larger it is, the ",
                ),
                "less the bound promises. What real attacks reach is usually far below the bound, but only the bound "
                "is proven.",
            )
        )
    ]


def _nist_table(evidence: Evidence) -> Table:
    plan, ending = evidence.reserved, evidence.ending
    spent = ending if ending is not None else None
    rows: list[tuple[str, Sentence]] = [
        ("Unit of privacy", unit_words(evidence)),
        ("Neighbouring relation", say(fact(plan, "/plan/neighbouring"), ": ", _relation(plan))),
        ("Declared number of units", say(fact(plan, "/plan/declared_units"), ", stated by the data owner")),
        ("Privacy parameters", _parameters(plan, spent)),
        ("Mechanism", words("Poisson-subsampled Gaussian mechanism on per-unit clipped gradients (DP-SGD)")),
        ("Bound on the influence of a unit", say("clip norm ", fact(plan, "/plan/max_grad_norm"), " per step")),
        *_phase_rows(plan),
        ("Noise", say("multiplier ", fact(plan, "/plan/noise_multiplier"), ", discrete, from the operating system")),
        ("Composition", say("tight numerical accountant, ", fact(plan, "/plan/accountant"), "; PRV and RDP beside it")),
        ("What is released", words("the adapter; the bound also covers every noised sum it was computed from")),
        ("Trust model", words("central: the machine that trains sees the data in clear; recipients see the adapter")),
        ("Post-processing", words("the watermark and every quantisation or merge of the adapter cost nothing more")),
        ("Part of delta for the noise sampler", say(fact(plan, "/plan/sampler_delta"))),
        ("Outside the bound", words("timing and memory use seen on the machine, the size of the data, other releases")),
    ]
    return pairs("The guarantee in the order of NIST SP 800-226", rows, ("Property", "This run"))


def _phase_rows(plan: LoggedEvent) -> list[tuple[str, Sentence]]:
    """Say what each phase of a curriculum samples from; the phases are composed sequentially."""
    rows = []
    for place, _ in items(plan, "/plan/phases") if states(plan, "/plan/phases") else ():
        phase = f"/plan/phases/{place}"
        sentence = say(
            *(fact(plan, f"{phase}/name"), ": ", fact(plan, f"{phase}/steps"), " steps with sample rate "),
            *(fact(plan, f"{phase}/sample_rate"), " of ", fact(plan, f"{phase}/declared_units"), " declared units"),
            *_filter(plan, phase),
        )
        rows.append(("Phase, composed with the others", sentence))
    return rows


def _filter(plan: LoggedEvent, phase: str) -> Sentence:
    if not states(plan, f"{phase}/field"):
        return ()
    values = fact(plan, f"{phase}/values")
    return (" that have a record whose ", fact(plan, f"{phase}/field"), " is one of ", values)


def _relation(plan: LoggedEvent) -> str:
    return RELATION.get(plan.facts["plan"]["neighbouring"], "as named")


def _parameters(plan: LoggedEvent, ending: LoggedEvent | None) -> Sentence:
    if ending is None:
        return say("reserved: epsilon ", fact(plan, "/plan/epsilon"), ", delta ", fact(plan, "/plan/delta"))
    charged = ("epsilon ", fact(ending, "/epsilon_charged"), ", delta ", fact(ending, "/delta"))
    return say(*charged, " (reserved: epsilon ", fact(plan, "/plan/epsilon"), ")")


# --- epsilon against steps ------------------------------------------------------------------------------------------


def spending_section(evidence: Evidence) -> Section:
    """Show epsilon against sampled steps, by three accountants, and the place of the empirical bound."""
    ending = evidence.ending
    if ending is None:
        blocks: tuple[Block, ...] = (Paragraph(words("The run has not been settled: not performed.")),)
    else:
        blocks = (*_curve(evidence, ending), _accountants(evidence, ending))
    return Section("spending", "Epsilon against steps", blocks)


def _curve(evidence: Evidence, ending: LoggedEvent) -> list[Block]:
    if not states(ending, "/epsilon_curve") or not ending.facts["epsilon_curve"]:
        return [Paragraph(words("The entry of this run holds no course of epsilon, only its end."))]
    points = [
        (fact(ending, f"{figure.pointer}/0"), fact(ending, f"{figure.pointer}/1"))
        for _, figure in items(ending, "/epsilon_curve")
    ]
    finals = {name: fact(ending, f"/epsilon_{name}") for name in ("prv", "rdp")}
    svg = charts.spending(points, finals, fact(evidence.reserved, "/plan/epsilon"))
    rows = tuple((say(step), say(epsilon)) for step, epsilon in points)
    return [
        Chart("Epsilon by PLD after so many sampled steps, with the ends by PRV and RDP and the reservation", svg),
        Table("Epsilon by PLD after so many sampled steps", ("Sampled steps", "Epsilon"), rows),
    ]


def _accountants(evidence: Evidence, ending: LoggedEvent) -> Table:
    return pairs(
        "Epsilon at the end, by accountant",
        [
            ("PLD (reserves, and draws the curve)", say(fact(ending, "/epsilon_pld"))),
            ("PRV (an independent second accountant)", say(fact(ending, "/epsilon_prv"))),
            ("RDP (older and looser, for comparison)", say(fact(ending, "/epsilon_rdp"))),
            ("Charged: the larger of PLD and PRV, rounded up", say(fact(ending, "/epsilon_charged"))),
            ("Reserved before the run", say(fact(evidence.reserved, "/plan/epsilon"))),
            ("Lower bound from an attack on the adapter", words("not performed")),
        ],
        ("Accountant", "Epsilon"),
    )
