# Prints what an interactive zsh offers when the tabulator is pressed behind "key4c-kms-plugin $1". A compadd
# with -O, -A or -D fills arrays, and offers nothing.
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z 'PROMPT=; stty -echo -onlcr; autoload -Uz compinit && compinit -D -u
eval "$($BINARY completion zsh)"
compadd() {
  if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then builtin compadd "$@"; return; fi
  local -a hits; builtin compadd -A hits "$@"; (($#hits)) && print -l "" "OFFERED:"$^hits
  builtin compadd "$@"
}
finish() { print "\nEN""D"; exit }
comppostfuncs=(finish); bindkey "^I" complete-word; print REA""DY'
zpty -r -m z seen '*READY*'
zpty -w -n z "key4c-kms-plugin $1"$'\t'
zpty -r -m z seen '*END*'
print -r -- "$seen"
