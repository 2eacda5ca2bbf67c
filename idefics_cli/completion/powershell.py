"""The script for PowerShell 5 and later."""

from __future__ import annotations

from idefics_cli.completion.spec import PICTURE_ENDINGS, ShellCommand

_HEAD = r"""# Completion of `idefics` in PowerShell. Made by `idefics completion show powershell`.

Register-ArgumentCompleter -Native -CommandName idefics -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)

    $table = @{
"""

_TAIL = r"""    }

    $words = @($commandAst.CommandElements |
        Where-Object { $_.Extent.EndOffset -lt $cursorPosition } |
        ForEach-Object { $_.Extent.Text })
    $path = 'idefics'
    $option = $null
    $ended = $false
    $position = 0
    foreach ($word in ($words | Select-Object -Skip 1)) {
        $command = $table[$path]
        if ($option) { $option = $null }
        elseif ($ended -or $word -notlike '-?*') {
            if (-not $ended -and $command.Commands.Contains($word)) { $path = "$path $word" }
            else { $position++ }
        }
        elseif ($word -eq '--') { $ended = $true }
        elseif ($command.Valued.ContainsKey($word)) { $option = $word }
    }
    $command = $table[$path]

    $prefix = ''
    $start = $wordToComplete
    if ($option) { $kind = $command.Valued[$option] }
    elseif ($start -match '^(-[^=]*)=(.*)$' -and $command.Valued.ContainsKey($Matches[1])) {
        $kind = $command.Valued[$Matches[1]]
        $prefix = $Matches[1] + '='
        $start = $Matches[2]
    }
    elseif ($start -like '-*' -and -not $ended) { $kind = 'flags' }
    elseif ($command.Commands.Count) { $kind = 'commands' }
    elseif ($position -lt $command.Arguments.Count) { $kind = $command.Arguments[$position] }
    else { $kind = $command.Repeated }
    $start = $start.Trim("'", '"')

    function Show-Value($value, $note) {
        if (-not $value.StartsWith($start, [StringComparison]::OrdinalIgnoreCase)) { return }
        $text = $value
        if ($text -match "[\s'``]") { $text = "'" + $text.Replace("'", "''") + "'" }
        if (-not $note) { $note = $value }
        [System.Management.Automation.CompletionResult]::new(
            $prefix + $text, $value, 'ParameterValue', $note)
    }

    function Show-Files($accept) {
        $found = @([System.Management.Automation.CompletionCompleters]::CompleteFilename($start))
        $chosen = @($found | Where-Object {
            $_.ResultType -eq 'ProviderContainer' -or $_.ListItemText -match $accept })
        if (-not $chosen.Count -and $accept -ne '$^') { $chosen = $found }
        $chosen | ForEach-Object {
            [System.Management.Automation.CompletionResult]::new(
                $prefix + $_.CompletionText, $_.ListItemText, $_.ResultType, $_.ToolTip) }
    }

    switch -Regex ($kind) {
        '^flags$' {
            foreach ($row in $command.Flags.GetEnumerator()) { Show-Value $row.Key $row.Value }
        }
        '^commands$' {
            foreach ($row in $command.Commands.GetEnumerator()) { Show-Value $row.Key $row.Value }
        }
        '^words:' { foreach ($word in $kind.Substring(6).Split(',')) { Show-Value $word '' } }
        '^(models|sessions)$' {
            $name = $words[0].Trim("'", '"')
            $shown = @(& $name __complete $kind $start 2>$null | ForEach-Object {
                $value, $note = $_ -split "`t", 2
                Show-Value $value $note })
            if ($kind -eq 'models' -and -not $shown.Count) { Show-Files '$^' } else { $shown }
        }
        '^pictures$' { Show-Files '\.(@PICTURES@)$' }
        '^files$' { Show-Files '.' }
        '^folders$' { Show-Files '$^' }
    }
}
"""


def powershell_script(root: ShellCommand) -> str:
    """Return the script that completes *root*."""
    table = "".join(_entry(command) for command in root.walk())
    return _HEAD + table + _TAIL.replace("@PICTURES@", "|".join(PICTURE_ENDINGS))


def _entry(command: ShellCommand) -> str:
    commands = [(child.path[-1], child.help) for child in command.commands]
    flags = [(f, o.help) for o in command.options for f in o.flags if f.startswith("--")]
    valued = [(f, o.value.code) for o in command.options if o.value for f in o.flags]
    arguments = [_quoted(a.value.code) for a in command.arguments]
    repeated = [a.value.code for a in command.arguments if a.repeats]
    return (
        f"        {_quoted(' '.join(command.path))} = @{{\n"
        f"            Commands = [ordered]{_hash(commands)}\n"
        f"            Flags = [ordered]{_hash(flags)}\n"
        f"            Valued = {_hash(valued)}\n"
        f"            Arguments = @({', '.join(arguments)})\n"
        f"            Repeated = {_quoted(repeated[0] if repeated else '')}\n"
        "        }\n"
    )


def _hash(rows: list[tuple[str, str]]) -> str:
    pairs = "; ".join(f"{_quoted(key)} = {_quoted(value)}" for key, value in rows)
    return f"@{{ {pairs} }}" if pairs else "@{}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
